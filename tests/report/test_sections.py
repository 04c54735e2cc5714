"""What the tables of the pages hold."""

import dataclasses

import pytest

from aurora_rl.evaluation.comparison import Difference, compare_overall
from aurora_rl.evaluation.intervals import Interval
from aurora_rl.report.sections import DifferenceTable, run_table, score_table, with_mix
from tests.row_results import answered


def difference(name: str, low: float, high: float) -> Difference:
    mean = (low + high) / 2
    [found] = compare_overall([answered(0)], [answered(0)], names=["J"]).values()
    return dataclasses.replace(found, name=name, gain=Interval(mean, low, high))


def test_differences_are_drawn_as_shares_of_their_scales_and_around_0() -> None:
    rows = [difference("sampled_reward", 0.3, 1.5), difference("J", 0.1, 0.2)]  # the reward is of 3
    assert DifferenceTable("", {"": rows}, "a", "b").drawn == pytest.approx((-0.02, 0.5))
    assert DifferenceTable("", {}, "a", "b").drawn == (-0.02, 0.02)


def test_a_score_table_has_the_measures_that_some_group_has() -> None:
    table = score_table("Split", {"test_s": {"J": 0.5, "n": 2}, "test_n": {"S": 0.1, "n": 1}})
    assert [measure.name for measure in table.measures] == ["J", "S"]


def test_mix_is_left_out_where_it_is_not_known() -> None:
    mixes = {"mean_of_splits": {"J": 0.5}, "row_weighted": None}
    assert with_mix({"test_s": {"J": 0.5}}, mixes) == {"test_s": {"J": 0.5}, "Mix, mean of splits": {"J": 0.5}}


def test_runs_have_the_first_runs_measures_and_their_differences_from_it() -> None:
    first, other = [answered(n) for n in range(3)], [answered(n, category_correct=0.0) for n in range(3)]
    table = run_table("first", first, {"other": other}, names=["category_accuracy", "sampled_reward"])
    assert table.numbers == {"category_accuracy": 1.0}  # nothing was sampled
    assert table.differences["other"]["category_accuracy"].gain.mean == -1.0
    assert table.differences["other"]["category_accuracy"].verdict == "worse"
