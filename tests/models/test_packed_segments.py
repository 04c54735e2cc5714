"""Prompts and branches of a row as sequences, by hand."""

import torch

from aurora_rl.models.packed_segments import Segments

#: Two shared tokens and branches of 3 and 1; nothing shared and branches of 2 and 4.
SEGMENTS = Segments.of([(2, (3, 1)), (0, (2, 4))], torch.device("cpu"))


def test_each_sequence_begins_where_the_one_before_ends_and_none_is_empty() -> None:
    starts = {name: getattr(SEGMENTS, name).starts.tolist() for name in ("own", "read", "branches", "prompts")}
    assert starts == {
        "own": [0, 2, 5, 6, 8, 12],
        "read": [0, 2, 7, 10, 12, 16],
        "branches": [0, 4],
        "prompts": [0, 2],
    }
    assert (SEGMENTS.own.longest, SEGMENTS.read.longest, SEGMENTS.branches.longest) == (4, 5, 4)
    assert SEGMENTS.own.starts.dtype == torch.int32


def test_places_are_those_of_groups_with_something_to_share() -> None:
    assert SEGMENTS.prompt_places.tolist() == [0, 1] and SEGMENTS.branch_places.tolist() == [2, 3, 4, 5]


def test_a_prompt_stands_before_each_branch_that_reads_it() -> None:
    row = torch.arange(12.0)[:, None, None].requires_grad_()
    read = SEGMENTS.behind_prompts(row)
    assert read.flatten().tolist() == [0, 1, 0, 1, 2, 3, 4, 0, 1, 5, 6, 7, 8, 9, 10, 11]
    read.sum().backward()
    assert row.grad is not None and row.grad.flatten().tolist() == [3, 3, *[1] * 10]


def test_a_row_in_which_nothing_is_shared_has_no_prompts() -> None:
    segments = Segments.of([(0, (2,))], torch.device("cpu"))
    assert segments.prompts.longest == 0 and len(segments.prompt_places) == len(segments.branch_places) == 0
