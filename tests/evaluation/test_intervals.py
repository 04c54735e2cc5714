"""Bootstrap intervals of `aurora_rl.evaluation.intervals`."""

import pytest

from aurora_rl.evaluation.intervals import bootstrap_difference, bootstrap_interval, bootstrap_mean_of_means


def test_interval_of_a_constant_is_that_constant():
    interval = bootstrap_interval([0.25] * 40)
    assert (interval.low, interval.mean, interval.high) == (0.25, 0.25, 0.25)


def test_interval_of_coin_flips_is_near_the_normal_one():
    # Standard error of a mean of 400 fair coins: sqrt(0.25 / 400) = 0.025; 1.96 of them to both sides.
    interval = bootstrap_interval([0.0, 1.0] * 200)
    assert interval.mean == 0.5
    assert interval.low == pytest.approx(0.5 - 0.049, abs=0.006)
    assert interval.high == pytest.approx(0.5 + 0.049, abs=0.006)


def test_interval_does_not_depend_on_the_order_of_rows():
    values, clips = [0.1, 0.9, 0.4, 0.7, 0.2], ["a", "b", "a", "c", "b"]
    assert bootstrap_interval(values, clips=clips) == bootstrap_interval(values[::-1], clips=clips[::-1])
    assert bootstrap_interval(values) == bootstrap_interval(values[::-1])


def test_interval_is_the_same_for_the_same_seed_and_another_for_another():
    values = [0.0, 0.3, 1.0, 0.6, 0.8, 0.1, 0.45]
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_mean_of_means_weighs_the_groups_alike_and_draws_each_by_itself():
    # A group of one value adds nothing to the spread: half the interval of the other group, around the mean of both.
    coins, constant = [0.0, 1.0] * 200, [0.5] * 10
    alone = bootstrap_interval(coins, clips=range(400))
    both = bootstrap_mean_of_means([(coins, range(400)), (constant, range(10))])
    assert both.mean == 0.5
    assert both.low == pytest.approx(0.5 - (0.5 - alone.low) / 2)
    assert both.high == pytest.approx(0.5 + (alone.high - 0.5) / 2)
    assert bootstrap_mean_of_means([(coins, range(400))]) == alone


def test_rows_of_one_clip_are_drawn_together():
    # Ten copies of each of four clips tell no more than the four clips.
    values = [0.0, 0.2, 0.8, 1.0]
    copies = bootstrap_interval(values * 10, clips=[0, 1, 2, 3] * 10)
    alone = bootstrap_interval(values)
    assert copies.low == pytest.approx(alone.low) and copies.high == pytest.approx(alone.high)
    assert bootstrap_interval(values * 10).low > copies.low


def test_clips_weigh_by_their_number_of_rows():
    assert bootstrap_interval([1.0, 1.0, 1.0, 0.0], clips=["a", "a", "a", "b"]).mean == 0.75


def test_interval_of_one_clip_is_its_mean():
    interval = bootstrap_interval([0.0, 1.0], clips=["a", "a"])
    assert (interval.low, interval.high) == (0.5, 0.5)


def test_interval_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])


def test_difference_compares_each_row_with_itself():
    # The rows differ widely, their gains not at all: the paired interval has no width.
    before = {"a": 0.0, "b": 0.5, "c": 0.25}
    after = {"c": 0.5, "a": 0.25, "b": 0.75}
    gain = bootstrap_difference(before, after)
    assert (gain.low, gain.mean, gain.high) == (0.25, 0.25, 0.25)


def test_difference_of_a_row_that_one_run_lacks_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="'b#1'"):
        bootstrap_difference({"a#0": 0.1, "b#1": 0.2}, {"a#0": 0.3})
