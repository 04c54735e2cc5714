"""The memory that code would take, measured on the `meta` device, where tensors have shapes and no content."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Context that adds up the storages which are made inside it and still alive.

    Attributes:
        current: bytes that are alive now.
        peak: highest number of bytes alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            self._meet(tensor, num_bytes=0)  # made before
        output = func(*args, **kwargs)
        for tensor in _tensors(output):
            self._meet(tensor, num_bytes=tensor.untyped_storage().nbytes())
        return output

    def _meet(self, tensor: Tensor, *, num_bytes: int) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.current += num_bytes
            self.peak = max(self.peak, self.current)
            weakref.finalize(storage, self._forget, storage._cdata, num_bytes)

    def _forget(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.current -= num_bytes


class FusedAttention(TorchFunctionMode):
    """Gives attention the memory of a fused kernel; on `meta` PyTorch would choose the kernel that keeps L x L.

    Experts' products of any dtype have the memory of products with one matrix: tokens are many, experts one tensor.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._grouped_mm:  # (tokens, D) x (experts, D, N); on `meta` it takes bf16 alone
            return args[0] @ args[1][0]
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3]
        mask = args[3] if len(args) > 3 else (kwargs or {}).get("attn_mask")
        if mask is not None:  # PyTorch converts it to a bias in each layer, and keeps that
            mask = torch.empty_like(mask, dtype=query.dtype)
        # This fused kernel runs on every build; like all others it keeps query, key, value, output and (B, H, L).
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=mask)[0]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextlib.contextmanager
def _autocast_on_meta() -> Iterator[None]:
    """Let code switch autocast off on `meta`, where it has none; PEFT does so where LoRA adapts experts."""
    autocast = torch.autocast

    def on_device(device_type: str, *args: Any, **options: Any) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if device_type == "meta" else autocast(device_type, *args, **options)

    torch.autocast = on_device  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        torch.autocast = autocast  # type: ignore[misc]


def forward_and_backward(run: Callable[[], Tensor]) -> tuple[int, int]:
    """Return the bytes that a forward pass keeps for its backward pass, and the peak of both passes.

    Args:
        run: forward pass; the parameters that it uses should have a `grad`, so that gradients are not counted.
    """
    with LiveMemory() as memory, FusedAttention(), _autocast_on_meta():
        output = run()
        kept = memory.current
        output.backward(torch.empty_like(output))
    return kept, memory.peak


@torch.no_grad()
def forward_only(run: Callable[[], Any]) -> int:
    """Return the peak of a forward pass without gradients, in bytes."""
    with LiveMemory() as memory, FusedAttention(), _autocast_on_meta():
        run()
    return memory.peak
