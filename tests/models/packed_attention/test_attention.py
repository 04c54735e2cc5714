"""Each kernel over a packed row against the attention of each row by itself, outputs and gradients."""

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from aurora_rl.models import packed_attention
from aurora_rl.models.packed_attention import KERNELS, shared_prefix_attention
from aurora_rl.models.packed_layout import PackedLayout, pack
from tests.models.packed_attention.flash_on_cpu import flash_on_cpu

HEADS, KEY_HEADS, DIM = 4, 2, 8
LAYER: Any = SimpleNamespace(is_causal=True, num_key_value_groups=HEADS // KEY_HEADS)


def batch_of(shape: tuple[tuple[int, tuple[int, ...]], ...]) -> tuple[torch.Tensor, torch.Tensor, int, list[int]]:
    """A padded batch of groups, each a prompt's length and its completions' lengths."""
    width, length = max(prompt for prompt, _ in shape), max(max(sizes) for _, sizes in shape)
    rows = [(group, prompt, size) for group, (prompt, sizes) in enumerate(shape) for size in sizes]
    mask = torch.zeros(len(rows), width + length, dtype=torch.long)
    ids = torch.zeros_like(mask)
    for row, (group, prompt, size) in enumerate(rows):
        mask[row, width - prompt : width + size] = 1
        ids[row, width - prompt : width] = 100 * (group + 1) + torch.arange(prompt)
        ids[row, width : width + size] = 1000 * (row + 1) + torch.arange(size)
    return ids, mask, length, [group for group, _, _ in rows]


def alone(
    states: list[torch.Tensor],
    ids: torch.Tensor,
    mask: torch.Tensor,
    packed_ids: torch.Tensor,
    scaling: float | None = None,
) -> torch.Tensor:
    """Attention of each row by itself, put where the packed row has its tokens."""
    place_of = {token: place for place, token in reversed(list(enumerate(packed_ids.tolist())))}
    expected = torch.zeros(1, len(packed_ids), HEADS, DIM, dtype=torch.float64)
    for row, real in zip(ids, mask.bool(), strict=True):
        places = torch.tensor([place_of[token] for token in row[real].tolist()])
        query, key, value = (state[:, :, places] for state in states)
        output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        expected = expected.index_copy(1, places, output.transpose(1, 2))
    # The copies of a prompt's last token are the same token.
    firsts = torch.tensor([place_of[token] for token in packed_ids.tolist()])
    return expected[:, firsts]


def states_of_tokens(packed_ids: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Random query, key and value of each distinct token, and the token of each place of the row."""
    generator = torch.Generator().manual_seed(len(packed_ids))
    known, inverse = packed_ids.unique(return_inverse=True)
    shapes = [(1, count, len(known), DIM) for count in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes], inverse


def states_of(packed_ids: torch.Tensor) -> list[torch.Tensor]:
    """Random query, key and value of each token of the row; copies of a token have the same."""
    tokens, inverse = states_of_tokens(packed_ids)
    return [state[:, :, inverse] for state in tokens]


def drawn(shape: tuple[tuple[int, tuple[int, ...]], ...]) -> tuple[PackedLayout, list[torch.Tensor]]:
    """The layout of groups, and random states of their row."""
    ids, mask, length, groups = batch_of(shape)
    layout = pack(ids, mask, length, groups)
    return layout, states_of(layout.inputs(ids)["input_ids"][0])


LENGTHS = [(prompt, sizes) for prompt in (1, 2, 4) for sizes in ((0,), (3,), (1, 2), (2, 2, 0))]
#: A prompt much shorter than its completions, which each of them attends anew; completions without padding.
LENGTHS += [(2, (5, 1)), (2, (5, 5)), (4, (2, 2))]


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each kernel in turn, in float64; those of CUDA by operators that are written out."""
    monkeypatch.setattr(packed_attention, "kernel_for", lambda *_: request.param)
    with flash_on_cpu():
        yield request.param


@pytest.mark.parametrize("first", LENGTHS, ids=str)
def test_attention_over_the_row_is_that_of_each_row_alone(kernel: str, first: tuple[int, tuple[int, ...]]) -> None:
    for second in LENGTHS:
        compare((first, second), scaling=0.3, device="cpu", dtype=torch.float64, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_of_a_gpu_attend_as_each_row_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that is aligned to the starts, or a wrong gradient of the parts' sums, is tenths away."""
    monkeypatch.setattr(packed_attention, "kernel_for", lambda *_: name)
    for first in LENGTHS:
        compare((first, (4, (5, 1))), scaling=0.3, device="cuda", dtype=torch.bfloat16, atol=0.08)


def compare(
    shape: tuple[tuple[int, tuple[int, ...]], ...],
    *,
    scaling: float,
    device: str,
    dtype: torch.dtype,
    atol: float,
) -> None:
    """Compare outputs and gradients of `shape` with those of rows apart in float64."""
    ids, mask, length, groups = batch_of(shape)
    layout = pack(ids, mask, length, groups)
    packed_ids = layout.inputs(ids)["input_ids"][0]
    tokens, inverse = states_of_tokens(packed_ids)
    states = [token.requires_grad_()[:, :, inverse] for token in tokens]
    there = pack(ids.to(device), mask.to(device), length, groups)
    query, key, value = (state.to(device, dtype) for state in states)
    output, _ = shared_prefix_attention(LAYER, query, key, value, None, scaling=scaling, packed=there)
    found = output.to("cpu", torch.float64)
    expected = alone(states, ids, mask, packed_ids, scaling)
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad((output * weights).sum(), tokens, retain_graph=True) for output in (found, expected)
    )
    for gradient, of_rows in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, of_rows, atol=atol, rtol=0)


def test_a_layout_that_is_wrong_by_one_token_attends_to_others() -> None:
    ids, mask, length, groups = batch_of(((4, (2, 3)), (3, (1, 2))))
    layout = pack(ids, mask, length, groups)
    packed_ids = layout.inputs(ids)["input_ids"][0]
    states = states_of(packed_ids)
    expected = alone(states, ids, mask, packed_ids)
    first, *others = layout.groups
    for wrong in ({"shared": first.shared - 1}, {"start": first.start + 1}, {"index": (first.index - 1)}):
        groups_of_other = (dataclasses.replace(first, **wrong), *others)
        other = dataclasses.replace(layout, groups=groups_of_other)
        found, _ = shared_prefix_attention(LAYER, *states, None, packed=other)
        size = min(found.size(1), expected.size(1))
        assert (found[:, :size] - expected[:, :size]).abs().max() > 1e-2, wrong


def test_without_a_layout_it_is_sdpa_of_transformers() -> None:
    query, key, value = states_of(torch.arange(5))
    found, _ = shared_prefix_attention(LAYER, query, key, value, None)
    expected = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(found, expected)


def test_a_window_is_refused() -> None:
    layout, states = drawn(((3, (2, 0)), (1, (1, 3))))
    with pytest.raises(ValueError, match="sliding window cannot read a packed row"):
        shared_prefix_attention(LAYER, *states, None, packed=layout, sliding_window=4)


def test_states_of_a_rotation_in_float32_join_values_in_half_precision() -> None:
    """As under autocast, where a plain sdpa casts them."""
    layout, states = drawn(((3, (2, 0)), (1, (1, 3))))
    query, key, value = (state.float() for state in states)
    half, _ = shared_prefix_attention(LAYER, query, key, value.bfloat16(), None, packed=layout)
    full, _ = shared_prefix_attention(LAYER, query, key, value, None, packed=layout)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, atol=0.05, rtol=0)


def test_a_kernel_that_refuses_is_remembered_and_leaves_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """`varlen_attn` has no kernel for a CPU. Other processes go through the same modules meanwhile."""
    monkeypatch.setattr(packed_attention, "kernel_for", lambda *_: "varlen")
    layout, states = drawn(((3, (2, 0)),))
    with pytest.raises(NotImplementedError, match="_flash_attention_forward"):
        shared_prefix_attention(LAYER, *states, None, packed=layout)
    noting = dataclasses.replace(layout, errors=[])
    output, _ = shared_prefix_attention(LAYER, *states, None, packed=noting)
    assert output.isnan().all() and output.shape == (1, states[0].size(2), HEADS, DIM)
    assert [type(error) for error in noting.errors or ()] == [NotImplementedError]


@pytest.mark.parametrize("name", ["varlen", "merged"])
def test_dropout_is_refused_by_kernels_that_know_none(name: str) -> None:
    layout, states = drawn(((3, (2, 0)),))
    with pytest.raises(ValueError, match="no dropout, and attention_dropout is 0.1"):
        KERNELS[name](*states, layout, dropout=0.1)
