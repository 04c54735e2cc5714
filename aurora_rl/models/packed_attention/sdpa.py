"""PyTorch's attention, for any device and dtype: two calls a group, the prompt on itself, and every branch on both.

In the second call branches are padded at the right, which needs no mask either: the causal mask hides what lies behind
a token. Where the prompt is short one call is faster, of each branch with the prompt before it: kernels that are given
a mask compute what it hides, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from aurora_rl.models.packed_layout import Group, PackedLayout

#: A prompt of which so many are shorter than the longest branch is attended by each branch anew.
SHORT = 4


def attend_by_sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: PackedLayout,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Return the output (N, H, d) of a row's query (1, H, N, d), key and value (1, Hkv, N, d)."""
    options = {"dropout_p": dropout, "scale": scaling, "enable_gqa": query.size(1) != key.size(1)}
    groups = [_attend(query, key, value, group, options) for group in layout.groups]
    return torch.cat(groups, dim=1).transpose(0, 1)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: Group, options: dict[str, Any]
) -> torch.Tensor:
    """Return the output (H, n, d) of a group's n tokens."""
    longest = group.index.size(1)

    def branches(states: torch.Tensor) -> torch.Tensor:
        return group.branches(states[0]).transpose(0, 1)  # (G, heads, S, d)

    def behind_prompt(states: torch.Tensor) -> torch.Tensor:
        own = branches(states)
        of_prompt = states[:, :, group.prompt].expand(len(own), -1, -1, -1)
        return torch.cat([of_prompt, own], dim=2)  # (G, heads, P - 1 + S, d)

    if SHORT * group.shared < longest:
        output = scaled_dot_product_attention(
            behind_prompt(query), behind_prompt(key), behind_prompt(value), is_causal=True, **options
        )
        of_prompt, of_branches = output[:1, :, : group.shared], output[:, :, group.shared :]
    else:
        mask = causal_lower_right(longest, group.shared + longest)
        of_branches = scaled_dot_product_attention(
            branches(query), behind_prompt(key), behind_prompt(value), attn_mask=mask, **options
        )
        of_prompt = scaled_dot_product_attention(
            query[:, :, group.prompt], key[:, :, group.prompt], value[:, :, group.prompt], is_causal=True, **options
        )
    return torch.cat([of_prompt[0], group.in_row(of_branches.transpose(0, 1))], dim=1)
