"""Flash attention in two parts, so that no key of a prompt is copied: each branch on itself, and on its prompt.

In the second part the branches of a group are one long sequence without a causal mask, on one copy of their prompt's
keys. Outputs are weighed by the exponentials of the parts' log-sum-exps of scores. Backward, flash attention finds the
attention weights again from queries, keys and a log-sum-exp: given the merged output and log-sum-exp, the gradient of
each part is its share of the whole. Ring attention does the same (arXiv 2310.01889).

`varlen_attn` drops the gradient of the log-sum-exp that it returns, without an error: autograd through both calls and
the merge would be wrong.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.attention.varlen import AuxRequest, varlen_attn

from aurora_rl.models.packed_attention.varlen import CAUSAL, EVERYWHERE, by_token, refuse_dropout
from aurora_rl.models.packed_layout import PackedLayout
from aurora_rl.models.packed_segments import Lengths, Segments


def attend_merged(
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
    return _Merged.apply(by_token(query), by_token(key), by_token(value), layout.segments, scaling)


def merge(
    output: torch.Tensor, lse: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attention over two sets of keys from those over each.

    Args:
        output, other: (T, H, d) outputs over each set.
        lse, other_lse: (H, T) log-sum-exps of the scores.

    Returns:
        The output, computed in the log-sum-exp's dtype, and the log-sum-exp over both sets.
    """
    both = torch.logaddexp(lse, other_lse)
    share, other_share = ((part - both).exp().T[..., None] for part in (lse, other_lse))  # (T, H, 1)
    return output * share + other * other_share, both


class _Merged(torch.autograd.Function):
    """Attention over a row from (N, H, d) queries and (N, Hkv, d) keys and values."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        segments: Segments,
        scaling: float | None,
    ) -> torch.Tensor:
        output, lse = _attend(query, key, value, segments.own, segments.own, CAUSAL, scaling)
        branches, prompts = segments.branch_places, segments.prompt_places
        if len(prompts):
            part = query[branches], key[prompts], value[prompts]
            of_prompts = _attend(*part, segments.branches, segments.prompts, EVERYWHERE, scaling)
            merged, lse[:, branches] = merge(output[branches], lse[:, branches], *of_prompts)
            output[branches] = merged.to(output.dtype)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.segments, ctx.scaling = segments, scaling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        segments, scaling = ctx.segments, ctx.scaling
        of_query, of_key, of_value = _attend_backward(
            gradient, query, key, value, output, lse, segments.own, segments.own, True, scaling
        )
        branches, prompts = segments.branch_places, segments.prompt_places
        if len(prompts):
            part = query[branches], key[prompts], value[prompts], output[branches], lse[:, branches].contiguous()
            more_of_query, more_of_key, more_of_value = _attend_backward(
                gradient[branches], *part, segments.branches, segments.prompts, False, scaling
            )
            of_query[branches] += more_of_query  # each place once
            of_key[prompts] += more_of_key
            of_value[prompts] += more_of_value
        return of_query, of_key, of_value, None, None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    queries: Lengths,
    keys: Lengths,
    window: tuple[int, int],
    scaling: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output (T, H, d) and the log-sum-exp (H, T) of some sequences."""
    output, lse = varlen_attn(
        query,
        key,
        value,
        queries.starts,
        keys.starts,
        queries.longest,
        keys.longest,
        return_aux=AuxRequest(lse=True),
        scale=scaling,
        window_size=window,
        enable_gqa=query.size(1) != key.size(1),
    )
    expected = (query.size(1), query.size(0))  # the documentation says (T, H), PyTorch's shape function this
    if lse.shape != expected:
        raise RuntimeError(f"varlen_attn returns a log-sum-exp of shape {tuple(lse.shape)}, expected {expected}")
    return output, lse


def _attend_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    queries: Lengths,
    keys: Lengths,
    is_causal: bool,
    scaling: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of query, key and value, by the operator that `varlen_attn` itself uses."""
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=query.device), torch.empty(0, device=query.device)
    return torch.ops.aten._flash_attention_backward(
        gradient.contiguous(),
        query,
        key,
        value,
        output,
        lse,
        queries.starts,
        keys.starts,
        queries.longest,
        keys.longest,
        0.0,
        is_causal,
        *no_dropout,
        scale=scaling,
    )
