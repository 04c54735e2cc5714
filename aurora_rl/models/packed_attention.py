"""Attention over a packed row, as an attention implementation of transformers.

For each group two calls of PyTorch's attention: the prompt on itself, and every branch on the prompt and itself. No
mask over the whole row is made. In the second call branches are padded at the right, which needs no mask either: the
causal mask hides what lies behind a token. Where the prompt is short one call is faster, of each branch with the prompt
before it: kernels that are given a mask compute what it hides, too.

The layout reaches the layers as the keyword argument `packed`, so that gradient checkpointing, which runs a layer again
in the backward pass, runs it with the same one. Without it a call is plain sdpa: sampling, evaluation, other batches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from aurora_rl.models.packed_layout import Group, PackedLayout

#: Name of the implementation inside transformers.
IMPLEMENTATION = "shared_prefix_sdpa"
#: A prompt of which so many are shorter than the longest branch is attended by each branch anew.
SHORT = 4


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
    options = {"dropout_p": dropout, "scale": scaling, "enable_gqa": query.size(1) != key.size(1)}
    try:
        groups = [_attend(query, key, value, group, options) for group in packed.groups]
    except (RuntimeError, TypeError, ValueError) as error:  # a kernel that refuses the device, dtype or shape
        if packed.errors is None:
            raise
        packed.errors.append(error)
        return torch.full_like(query, torch.nan).transpose(1, 2), None
    return torch.cat(groups, dim=1).transpose(0, 1)[None].contiguous(), None


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
