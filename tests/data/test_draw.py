"""Rows that stand for a split cover its clips, and are the same wherever and from whatever file they are drawn."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from aurora_rl.data.draw import draw_over_clips
from aurora_rl.data.ref_avs import MetadataRow
from aurora_rl.data.sample import AVSample


def sample(clip: str, row: int, reference: str = "it") -> AVSample:
    return AVSample(f"{clip}_cat", row, "val", clip, "cat", f"{reference} {row}", 1.0, (), None, ())


def clips_of(samples: Sequence[AVSample]) -> Counter[str]:
    return Counter(sample.media_id for sample in samples)


#: Clip a has five rows, b two, c one.
ROWS = [sample(clip, row) for row, clip in enumerate("aaaaabbc")]


@pytest.fixture(scope="module")
def official_val(official_rows: list[MetadataRow]) -> list[AVSample]:
    """The val split of the official table, without its media."""
    return [
        AVSample(row.uid, row.row, "val", row.media_id, row.category, row.reference, 1.0, (), None, ())
        for row in official_rows
        if row.split == "val"
    ]


def test_64_rows_of_the_official_val_split_are_64_clips(official_val: list[AVSample]) -> None:
    assert (len(official_val), len(clips_of(official_val))) == (1349, 275)
    assert len(clips_of(official_val[:64])) == 14  # control: what the first rows are
    assert len(clips_of(draw_over_clips(official_val, 64))) == 64
    assert len(clips_of(draw_over_clips(official_val, 200))) == 200
    drawn = draw_over_clips(official_val, 300)
    assert len(clips_of(drawn)) == 275 and max(clips_of(drawn).values()) == 2


@pytest.mark.parametrize(
    ("count", "expected"), [(3, {"a": 1, "b": 1, "c": 1}), (5, {"a": 2, "b": 2, "c": 1}), (7, {"a": 4, "b": 2, "c": 1})]
)
def test_no_clip_gives_a_further_row_before_the_others_gave_theirs(count: int, expected: dict[str, int]) -> None:
    for seed in range(5):
        assert clips_of(draw_over_clips(ROWS, count, seed=seed)) == expected


def test_what_is_drawn_does_not_depend_on_the_order_of_the_table(official_val: list[AVSample]) -> None:
    shuffled = random.Random(0).sample(official_val, len(official_val))
    assert draw_over_clips(shuffled, 64) == draw_over_clips(official_val, 64)
    renumbered = [AVSample(**{**vars(row), "row": number}) for number, row in enumerate(shuffled)]
    told = [[(row.uid, row.reference) for row in draw_over_clips(rows, 64)] for rows in (renumbered, official_val)]
    assert told[0] == told[1]  # nor on how the table numbers its rows


def test_the_draw_is_the_same_on_each_machine_and_another_with_each_seed(official_val: list[AVSample]) -> None:
    draws = [{row.key for row in draw_over_clips(official_val, 64, seed=seed)} for seed in range(4)]
    assert len({frozenset(draw) for draw in draws}) == 4
    assert [row.row for row in draw_over_clips(ROWS, 5)] == [7, 3, 2, 6, 5]  # by SHA-256, which no machine changes


def test_a_larger_draw_contains_a_smaller_one(official_val: list[AVSample]) -> None:
    drawn = [{row.key for row in draw_over_clips(official_val, count)} for count in (64, 300, 1000)]
    assert drawn[0] < drawn[1] < drawn[2]


def test_rows_of_a_clip_come_one_after_the_other() -> None:
    clips = [row.media_id for row in draw_over_clips(ROWS, 7)]
    assert sum(one != other for one, other in zip(clips, clips[1:], strict=False)) == 2


def test_a_split_that_is_short_enough_stays_as_it_is() -> None:
    for count in (None, 8, 100):
        assert draw_over_clips(ROWS, count) == ROWS


@pytest.mark.parametrize("count", [0, -3])
def test_no_rows_cannot_be_drawn(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} rows are to be drawn: give 1 or more"):
        draw_over_clips(ROWS, count)
