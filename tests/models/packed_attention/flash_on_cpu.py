"""PyTorch's flash attention operators on the CPU, written out, so that `varlen_attn` runs there in any dtype.

CUDA's operators take and return the same: sequences one after the other, a causal mask aligned to their ends, and a
backward pass that finds the weights again from the scores and the log-sum-exp that it is handed.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def flash_on_cpu() -> Iterator[None]:
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", _forward, "CPU")
    library.impl("_flash_attention_backward", _backward, "CPU")
    try:
        yield
    finally:
        library._destroy()


def _spans(starts: torch.Tensor, longest: int, total: int) -> list[slice]:
    assert starts.dtype == torch.int32 and starts[0] == 0 and starts[-1] == total
    ends = starts.tolist()
    spans = [slice(start, end) for start, end in zip(ends, ends[1:], strict=False)]
    assert max(span.stop - span.start for span in spans) == longest
    assert all(span.stop > span.start for span in spans)
    return spans


def _sequences(
    query: torch.Tensor, key: torch.Tensor, of_queries: tuple[Any, int], of_keys: tuple[Any, int]
) -> Iterator[tuple[slice, slice]]:
    queries, keys = _spans(*of_queries, len(query)), _spans(*of_keys, len(key))
    yield from zip(queries, keys, strict=True)


def _scores(query: torch.Tensor, key: torch.Tensor, scale: float | None, is_causal: bool) -> torch.Tensor:
    scale = query.size(-1) ** -0.5 if scale is None else scale
    scores = torch.einsum("qhd,khd->hqk", query, _for_heads(key, query.size(1))) * scale
    hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(len(key) - len(query) + 1)
    return scores.masked_fill(hidden, -torch.inf) if is_causal else scores


def _for_heads(states: torch.Tensor, heads: int) -> torch.Tensor:
    return states.repeat_interleave(heads // states.size(1), 1)


def _forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_starts: torch.Tensor,
    key_starts: torch.Tensor,
    max_q: int,
    max_k: int,
    dropout: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, ...]:
    assert dropout == 0 and not any(others.values())
    assert (window_size_left, window_size_right) == ((-1, 0) if is_causal else (-1, -1))
    output, lse = torch.empty_like(query), query.new_empty(query.size(1), len(query))
    for queries, keys in _sequences(query, key, (query_starts, max_q), (key_starts, max_k)):
        scores = _scores(query[queries], key[keys], scale, is_causal)
        lse[:, queries] = scores.logsumexp(-1)
        values = _for_heads(value[keys], query.size(1))
        output[queries] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
    empty = torch.empty(0)
    return output, lse, torch.zeros(2, dtype=torch.uint64), empty, empty


def _backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    query_starts: torch.Tensor,
    key_starts: torch.Tensor,
    max_q: int,
    max_k: int,
    dropout: float,
    is_causal: bool,
    rng_state: torch.Tensor,
    unused: torch.Tensor,
    *,
    scale: float | None = None,
    **_windows: Any,
) -> tuple[torch.Tensor, ...]:
    assert dropout == 0 and gradient.stride(-1) == 1
    assert lse.is_contiguous() and lse.shape == (query.size(1), len(query))
    of_query, of_key, of_value = (torch.empty_like(states) for states in (query, key, value))
    factor, heads = query.size(-1) ** -0.5 if scale is None else scale, query.size(1)

    def of_key_heads(of_heads: torch.Tensor) -> torch.Tensor:
        return of_heads.unflatten(1, (key.size(1), -1)).sum(2)

    for queries, keys in _sequences(query, key, (query_starts, max_q), (key_starts, max_k)):
        weights = (_scores(query[queries], key[keys], scale, is_causal) - lse[:, queries, None]).exp()
        arrived = gradient[queries]
        of_weights = torch.einsum("qhd,khd->hqk", arrived, _for_heads(value[keys], heads))
        of_scores = factor * weights * (of_weights - (arrived * output[queries]).sum(-1).T[..., None])
        of_query[queries] = torch.einsum("hqk,khd->qhd", of_scores, _for_heads(key[keys], heads))
        of_key[keys] = of_key_heads(torch.einsum("hqk,qhd->khd", of_scores, query[queries]))
        of_value[keys] = of_key_heads(torch.einsum("hqk,qhd->khd", weights, arrived))
    return of_query, of_key, of_value
