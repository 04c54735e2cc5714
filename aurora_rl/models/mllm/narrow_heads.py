"""Attention inside vLLM for head sizes that its CPU kernels lack, such as the 16 of the demo's model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.attention import Attention
from vllm.platforms import current_platform
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend


class PaddedAttention(Attention):
    """Attention that pads each head with zeros, which add nothing to a score, and cuts the output to size."""

    def __init__(self, num_heads: int, head_size: int, scale: float, **kwargs: Any) -> None:
        super().__init__(num_heads, kernel_head_size(head_size), scale, **kwargs)
        self.own_head_size = head_size

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Compute attention; inputs and output are (tokens, heads x own size)."""
        missing = self.head_size - self.own_head_size
        query, key, value = (
            nn.functional.pad(x.unflatten(-1, (-1, self.own_head_size)), (0, missing)).flatten(-2)
            for x in (query, key, value)
        )
        output = super().forward(query, key, value, **kwargs)
        return output.unflatten(-1, (-1, self.head_size))[..., : self.own_head_size].flatten(-2)


def kernel_head_size(head_size: int) -> int:
    """Return the smallest size that a CPU kernel takes; on a GPU the size itself."""
    if not current_platform.is_cpu():
        return head_size
    return min(size for size in CPUAttentionBackend.get_supported_head_sizes() if size >= head_size)


@contextlib.contextmanager
def heads_of_any_size(module: ModuleType, head_size: int) -> Iterator[None]:
    """Let language models that are built in the block pad their heads, if no kernel takes their size.

    Args:
        module: vLLM's module of the language model, which has `Attention` among its names.
        head_size: size of a head.
    """
    if kernel_head_size(head_size) == head_size:
        yield
        return
    module.Attention = PaddedAttention  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.Attention = Attention  # type: ignore[attr-defined]
