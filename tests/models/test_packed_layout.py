"""The one row of a batch of groups, by hand."""

import pytest
import torch

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
