"""Attention inside vLLM for heads of a size that its CPU kernels do not have, such as the 16 of the demo's model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models import qwen2
from vllm.platforms import current_platform
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend


class PaddedAttention(Attention):
    """Fills each head up with zeros: they add nothing to a score, and what they see is cut off again."""

    def __init__(self, num_heads: int, head_size: int, scale: float, **kwargs: Any) -> None:
        super().__init__(num_heads, kernel_head_size(head_size), scale, **kwargs)
        self.own_head_size = head_size

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """As `Attention`'s, (tokens, heads x own size) in and out."""
        missing = self.head_size - self.own_head_size
        query, key, value = (
            nn.functional.pad(x.unflatten(-1, (-1, self.own_head_size)), (0, missing)).flatten(-2)
            for x in (query, key, value)
        )
        output = super().forward(query, key, value, **kwargs)
        return output.unflatten(-1, (-1, self.head_size))[..., : self.own_head_size].flatten(-2)


def kernel_head_size(head_size: int) -> int:
    """The smallest size that a CPU kernel takes; a GPU's are left alone."""
    if not current_platform.is_cpu():
        return head_size
    return min(size for size in CPUAttentionBackend.get_supported_head_sizes() if size >= head_size)


@contextlib.contextmanager
def heads_of_any_size(head_size: int) -> Iterator[None]:
    """Qwen2 language models that are built in here have padded heads, where theirs are of a size without a kernel."""
    if kernel_head_size(head_size) == head_size:
        yield
        return
    qwen2.Attention = PaddedAttention
    try:
        yield
    finally:
        qwen2.Attention = Attention
