"""Attention over a packed row, as an attention implementation of transformers.

The prompt of each group reads itself, and every branch reads the prompt and itself. No mask over the whole row is made.
Three kernels compute it, one a file, and `choice` tells which: `sdpa` on any device, `varlen` and `merged` on GPUs in
half precision.

The layout reaches the layers as the keyword argument `packed`, so that gradient checkpointing, which runs a layer again
in the backward pass, runs it with the same one. Without it a call is plain sdpa: sampling, evaluation, other batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from aurora_rl.models.packed_attention.choice import kernel_for
from aurora_rl.models.packed_attention.merged import attend_merged
from aurora_rl.models.packed_attention.sdpa import attend_by_sdpa
from aurora_rl.models.packed_attention.varlen import attend_by_varlen
from aurora_rl.models.packed_layout import PackedLayout

#: Name of the implementation inside transformers.
IMPLEMENTATION = "shared_prefix_sdpa"
#: Query (1, H, N, d), key and value (1, Hkv, N, d), layout, `scaling` and `dropout` to the output (N, H, d).
KERNELS: dict[str, Callable[..., torch.Tensor]] = {
    "sdpa": attend_by_sdpa,
    "varlen": attend_by_varlen,
    "merged": attend_merged,
}


def register() -> None:
    """Make the implementation known to transformers; a second call changes nothing."""
    AttentionInterface.register(IMPLEMENTATION, shared_prefix_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def shared_prefix_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    packed: PackedLayout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend over a packed row, or as transformers' sdpa does where no layout is given.

    Args:
        module: the attention layer.
        query: (1, H, N, d) of the packed row, rotated.
        key, value: (1, Hkv, N, d).
        attention_mask: not read for a packed row.
        dropout: probability that an attention weight is dropped.
        scaling: factor of the scores.
        packed: layout of the row.
        **kwargs: further arguments of transformers.

    Returns:
        The output (1, N, H, d), and None in the place of the weights.

    Raises:
        ValueError: if the layer attends to a window of its tokens.
    """
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if kwargs.get("sliding_window") is not None:
        raise ValueError("a layer with a sliding window cannot read a packed row: set share_prompts to false")
    query, key = query.to(value.dtype), key.to(value.dtype)  # as autocast does for sdpa; rotation has made them float32
    kernel = KERNELS[kernel_for(key, packed, dropout)]
    try:
        output = kernel(query, key, value, packed, scaling=scaling, dropout=dropout)
    except (RuntimeError, TypeError, ValueError) as error:  # a kernel that refuses the device, dtype or shape
        if packed.errors is None:
            raise
        packed.errors.append(error)
        return torch.full_like(query, torch.nan).transpose(1, 2), None
    return output[None].contiguous(), None
