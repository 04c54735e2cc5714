"""Shares of several data sets: exact at any point, and the same for a seed and an epoch."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_rl.data.mixing import Mix, MixedSet, apportion, interleave


@settings(max_examples=25)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_at_any_point_each_index_has_its_share_but_for_less_than_one(counts: list[int]) -> None:
    given_so_far = [0] * len(counts)
    for number, index in enumerate(interleave(counts), start=1):
        given_so_far[index] += 1
        for had, count in zip(given_so_far, counts, strict=True):
            assert abs(had - Fraction(number * count, sum(counts))) < 1
    assert given_so_far == counts


def test_parts_sum_to_the_whole() -> None:
    assert apportion(7, [Fraction(1, 3), Fraction(2, 3)]) == [2, 5]


def sets_of(indices: list[int], starts: list[int]) -> list[int]:
    return [max(i for i, start in enumerate(starts) if index >= start) for index in indices]


def test_an_epoch_has_the_shares_and_short_sets_repeat_in_a_new_order() -> None:
    mix = Mix([MixedSet("a", 12, 0.75), MixedSet("b", 3, 0.25)], unit=4, seed=5)
    assert len(mix) == 16 and mix.counts == (12, 4)  # 15 rows, rounded up to whole units
    first, second = list(mix.order(0)), list(mix.order(1))
    for order in (first, second):
        for start in range(0, 16, 4):
            assert Counter(sets_of(order[start : start + 4], [0, 12])) == {0: 3, 1: 1}
    of_a = [index for index in first if index < 12]
    assert sorted(of_a) == list(range(12)) and of_a != sorted(of_a)
    assert of_a != [index for index in second if index < 12]  # a new pass has a new order
    of_b = [index for index in first + second if index >= 12]
    assert sorted(of_b[:3]) == sorted(of_b[3:6]) == [12, 13, 14]  # passes go on across epochs
    assert list(mix.order(1)) == second == list(Mix(mix.sets, unit=4, seed=5).order(1))
    assert list(Mix(mix.sets, unit=4, seed=6).order(1)) != second


def test_without_shares_each_row_is_read_once_and_the_next_epoch_reads_what_a_rounded_one_repeats() -> None:
    mix = Mix([MixedSet("a", 5), MixedSet("b", 3)], unit=2, shuffle=False)
    assert mix.counts == (5, 3) and sorted(mix.order(0)) == list(range(8))
    assert [index for index in mix.order(0) if index >= 5] == [5, 6, 7]


def test_rows_with_and_without_frames_never_share_a_unit() -> None:
    sets = [MixedSet("seen", 20, 0.5), MixedSet("heard", 6, 0.3, has_frames=False), MixedSet("more", 4, 0.2)]
    mix = Mix(sets, unit=3)
    order = sets_of(list(mix.order(0)), [0, 20, 26])
    units = [order[start : start + 3] for start in range(0, len(order), 3)]
    assert {set(unit) <= {0, 2} or set(unit) == {1} for unit in units} == {True}
    assert Counter(order) == {0: 15, 1: 9, 2: 6}


@pytest.mark.parametrize(
    ("shares", "message"),
    [((0.5, None), "'b' has no share, others have one"), ((1.0, 1e-9), "the share of 'b' .* is not one row")],
)
def test_shares_that_mean_nothing_are_refused(shares: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mix([MixedSet("a", 9, shares[0]), MixedSet("b", 9, shares[1])], unit=1)
