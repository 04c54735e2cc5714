"""The one row of a batch of groups, by hand, and attention over it against each row's own."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from aurora_rl.models.packed_attention import shared_prefix_attention
from aurora_rl.models.packed_layout import PackedLayout, pack

PAD = 0
#: Two groups whose rows are not neighbours: prompts 11 12 13 and 21; completions of 2, 1, 0 and 3 tokens.
INPUT_IDS = torch.tensor(
    [
        [11, 12, 13, 1, 2, PAD],
        [PAD, PAD, 21, 3, PAD, PAD],
        [11, 12, 13, PAD, PAD, PAD],
        [PAD, PAD, 21, 4, 5, 6],
    ]
)
MASK = (INPUT_IDS != PAD).long()
GROUPS = ["a", "b", "a", "b"]


def packed() -> PackedLayout:
    return pack(INPUT_IDS, MASK, 3, GROUPS)


def test_each_prompt_stands_once_before_its_branches() -> None:
    inputs = packed().inputs(INPUT_IDS)
    # prompt a | row 0 | row 2 | row 1 | row 3; prompt b has nothing to share
    assert inputs["input_ids"].tolist() == [[11, 12, 13, 1, 2, 13, 21, 3, 21, 4, 5, 6]]
    assert inputs["shift_labels"].tolist() == [[-100, -100, 1, 2, -100, -100, 3, -100, 4, 5, 6, -100]]
    assert inputs["attention_mask"].tolist() == [[2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]]


def test_the_weights_of_the_mask_count_every_token_of_the_padded_batch() -> None:
    assert packed().copies.sum() == MASK.sum()


def test_a_completion_counts_on_from_the_end_of_its_own_prompt() -> None:
    layout = packed()
    assert layout.text_positions().tolist() == [[0, 1, 2, 3, 4, 2, 0, 1, 0, 1, 2, 3]]
    of_prompts = torch.tensor([[[0, 1, 9], [7, 0, 0]], [[0, 1, 9], [7, 0, 0]], [[0, 5, 9], [7, 0, 0]]])  # (3, U, P)
    assert layout.positions(of_prompts)[2].tolist() == [[0, 5, 9, 10, 11, 9, 7, 8, 7, 8, 9, 10]]


def test_prompts_come_out_of_the_row_as_they_went_in() -> None:
    layout = packed()
    ids = layout.inputs(INPUT_IDS)["input_ids"]
    assert layout.of_prompts(ids, fill=-1).tolist() == [[11, 12, 13], [21, -1, -1]]
    assert layout.prompt_mask.tolist() == [[True, True, True], [True, False, False]]


def test_arguments_of_a_token_become_those_of_the_prompts_and_others_stay() -> None:
    layout = packed()
    grids = torch.tensor([[1, 4, 4]])
    given = {"input_ids": layout.inputs(INPUT_IDS)["input_ids"], "video_grid_thw": grids, "attention_mask": None}
    found = layout.inputs_of_prompts(given)
    assert found["input_ids"].tolist() == [[11, 12, 13], [21, 0, 0]] and found["video_grid_thw"] is grids
    assert found["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_values_of_the_row_go_back_to_the_tokens_that_they_predict() -> None:
    layout = packed()
    labels = layout.inputs(INPUT_IDS)["shift_labels"]
    assert layout.completions(labels, 3).tolist() == [[1, 2, 0], [3, 0, 0], [0, 0, 0], [4, 5, 6]]


def test_a_column_is_found_in_the_row_and_the_last_one_of_a_prompt_too() -> None:
    layout = packed()
    places = layout.places_of(torch.tensor([4, 3, 2, 5]))
    assert layout.inputs(INPUT_IDS)["input_ids"][0, places].tolist() == [2, 3, 13, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((0, 1, 99), "rows 0 and 2 are of one group, but their prompts differ"),
        ((3, 2, 99), "rows 1 and 3 are of one group"),
    ],
)
def test_rows_of_a_group_with_other_prompts_are_refused(change: tuple[int, int, int], message: str) -> None:
    row, column, token = change
    other = INPUT_IDS.clone()
    other[row, column] = token
    with pytest.raises(ValueError, match=message):
        pack(other, MASK, 3, GROUPS)


def test_padding_in_a_wrong_place_and_an_empty_prompt_are_refused() -> None:
    hole, empty = MASK.clone(), MASK.clone()
    hole[3, 4] = 0
    empty[1, 2] = 0
    with pytest.raises(ValueError, match="without holes"):
        pack(INPUT_IDS, hole, 3, GROUPS)
    with pytest.raises(ValueError, match="row 1 has no prompt"):
        pack(INPUT_IDS, empty, 3, ["a", "b", "a", "c"])


# ---- attention ------------------------------------------------------------------------------------------------------

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


def alone(states: list[torch.Tensor], ids: torch.Tensor, mask: torch.Tensor, packed_ids: torch.Tensor) -> torch.Tensor:
    """Attention of each row by itself, put where the packed row has its tokens."""
    place_of = {token: place for place, token in reversed(list(enumerate(packed_ids.tolist())))}
    expected = torch.zeros(1, len(packed_ids), HEADS, DIM, dtype=torch.float64)
    for row, real in zip(ids, mask.bool(), strict=True):
        places = torch.tensor([place_of[token] for token in row[real].tolist()])
        query, key, value = (state[:, :, places] for state in states)
        output = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
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


LENGTHS = [(prompt, sizes) for prompt in (1, 2, 4) for sizes in ((0,), (3,), (1, 2), (2, 2, 0))]
#: A prompt much shorter than its completions, which each of them attends anew; completions without padding.
LENGTHS += [(2, (5, 1)), (2, (5, 5)), (4, (2, 2))]


@pytest.mark.parametrize("first", LENGTHS, ids=str)
def test_attention_over_the_row_is_that_of_each_row_alone(first: tuple[int, tuple[int, ...]]) -> None:
    for second in LENGTHS:
        ids, mask, length, groups = batch_of((first, second))
        layout = pack(ids, mask, length, groups)
        packed_ids = layout.inputs(ids)["input_ids"][0]
        tokens, inverse = states_of_tokens(packed_ids)
        states = [token.requires_grad_()[:, :, inverse] for token in tokens]
        found, _ = shared_prefix_attention(LAYER, *states, None, packed=layout)
        expected = alone(states, ids, mask, packed_ids)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
        weights = torch.randn_like(found)
        ours, theirs = (
            torch.autograd.grad((output * weights).sum(), tokens, retain_graph=True) for output in (found, expected)
        )
        for gradient, of_rows in zip(ours, theirs, strict=True):
            torch.testing.assert_close(gradient, of_rows, atol=1e-12, rtol=0)


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
    states = states_of(packed().inputs(INPUT_IDS)["input_ids"][0])
    with pytest.raises(ValueError, match="sliding window cannot read a packed row"):
        shared_prefix_attention(LAYER, *states, None, packed=packed(), sliding_window=4)


def test_states_of_a_rotation_in_float32_join_values_in_half_precision() -> None:
    """As under autocast, where a plain sdpa casts them."""
    layout = packed()
    query, key, value = (state.float() for state in states_of(layout.inputs(INPUT_IDS)["input_ids"][0]))
    half, _ = shared_prefix_attention(LAYER, query, key, value.bfloat16(), None, packed=layout)
    full, _ = shared_prefix_attention(LAYER, query, key, value, None, packed=layout)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, atol=0.05, rtol=0)
