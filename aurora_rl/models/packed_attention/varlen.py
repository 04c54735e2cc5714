"""PyTorch's flash attention for sequences of several lengths, in one call for all prompts and branches of a row.

The queries are the row as it stands. The keys of a branch are its prompt's, copied, and its own, so that no branch is
padded; where there are more keys than queries, flash attention's causal mask is aligned to their ends.
"""

from __future__ import annotations

import torch
from torch.nn.attention.varlen import varlen_attn

from aurora_rl.models.packed_layout import PackedLayout

#: Windows of `varlen_attn` by which each token reads all keys up to its own, and all.
CAUSAL, EVERYWHERE = (-1, 0), (-1, -1)


def attend_by_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: PackedLayout,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Return the output (N, H, d) of a row's query (1, H, N, d), key and value (1, Hkv, N, d), all in half precision.

    Raises:
        ValueError: if there is dropout, which `varlen_attn` does not know.
    """
    refuse_dropout(dropout)
    segments = layout.segments
    output = varlen_attn(
        by_token(query),
        segments.behind_prompts(by_token(key)),
        segments.behind_prompts(by_token(value)),
        segments.own.starts,
        segments.read.starts,
        segments.own.longest,
        segments.read.longest,
        scale=scaling,
        window_size=CAUSAL,
        enable_gqa=query.size(1) != key.size(1),
    )
    assert isinstance(output, torch.Tensor)  # a log-sum-exp would come with it if it were asked for
    return output


def by_token(states: torch.Tensor) -> torch.Tensor:
    """Return (1, heads, N, d) as (N, heads, d)."""
    return states[0].transpose(0, 1)


def refuse_dropout(dropout: float) -> None:
    """Raise a ValueError if attention weights are dropped."""
    if dropout:
        raise ValueError(f"varlen_attn knows no dropout, and attention_dropout is {dropout:g}")
