"""Two systems beside each other, by hand."""

import dataclasses

import pytest

from aurora_rl.evaluation.comparison import compare_overall, compare_results
from aurora_rl.evaluation.tables import mark_novelty
from tests.row_results import answered, null, replied, rollout, row


def test_difference_is_paired_by_row_and_counts_wins_losses_and_ties():
    first = [row(0, J=0.5), row(1, J=0.5), row(2, J=0.5), row(3, J=0.5)]
    second = [row(3, J=0.5), row(2, J=0.25), row(1, J=1.0), row(0, J=0.75)]
    j = {difference.name: difference for difference in compare_results(first, second).splits["test_s"]}["J"]
    assert (j.first, j.second, j.gain.mean) == (0.5, 0.625, 0.125)
    assert (j.wins, j.losses, j.ties, j.verdict) == (2, 1, 1, "unclear")


def test_lower_s_is_a_win():
    comparison = compare_results([null(0, 0.5), null(1, 0.75)], [null(0, 0.25), null(1, 0.5)])
    found = {difference.name: difference for difference in comparison.splits["test_n"]}
    assert (found["S"].gain.mean, found["S"].wins, found["S"].verdict) == (-0.25, 2, "better")
    assert (found["null_accuracy"].ties, found["false_alarm_rate"].verdict) == (2, "unclear")
    assert [(r.row, r.name, r.first, r.second) for r in comparison.wins] == [(1, "S", 0.75, 0.5), (0, "S", 0.5, 0.25)]


def test_rows_that_differ_most_come_first():
    first = [row(number, J=0.5, F=0.5) for number in range(5)]
    second = [row(number, J=0.5, F=f) for number, f in enumerate((0.5, 1.0, 0.75, 0.0, 0.25))]
    comparison = compare_results(first, second)
    assert [r.row for r in comparison.wins] == [1, 2]
    assert [r.row for r in comparison.losses] == [3, 4]
    assert list(comparison.by_category) == ["drum"] and len(comparison.by_category["drum"]) == 1


def test_groups_are_compared_by_novelty_of_the_unseen_split():
    rows = [row(0, "test_u", category="cat", J=0.25), row(1, "test_u", J=0.5), row(2, J=0.5), null(3, 0.5)]
    first = mark_novelty(rows, ["drum"])
    second = [dataclasses.replace(r, J=r.J / 2 if r.novelty == "new" else 2 * r.J) for r in first]
    comparison = compare_results(first, second)
    assert {name: [(d.name, d.gain.mean) for d in found] for name, found in comparison.by_novelty.items()} == {
        "test_u, new categories": [("J&F", -0.0625)],
        "test_u, seen categories": [("J&F", 0.25)],
    }
    assert compare_results(rows, rows).by_novelty == {}
    assert comparison.derived_types == 4


def test_different_presets_rows_or_benchmarks_are_refused():
    with pytest.raises(ValueError, match=r"presets \['davis', 'refavs'\]"):
        compare_results([row(0)], [row(0, preset="davis")])
    with pytest.raises(ValueError, match="2 rows are in one run only, the first is 'uid1#1'"):
        compare_results([row(0), row(1)], [row(0), row(2)])
    with pytest.raises(ValueError, match="row 'uid0#0' is not the same in both"):
        compare_results([row(0)], [row(0, category="cat")])


def test_gain_of_a_completions_measure_is_paired_by_row_whatever_the_order():
    before = [answered(0, iou=0.0), answered(1, iou=0.5)]
    after = [answered(1, iou=0.75), answered(0, iou=0.25)]
    gain = compare_overall(before, after)["greedy_iou"].gain
    assert (gain.low, gain.mean, gain.high) == (0.25, 0.25, 0.25)


def test_measures_that_only_one_system_has_are_left_out():
    sampled = answered(0, sampled=(rollout(1.0, 1.0, 1.0),))
    assert "sampled_reward" not in compare_overall([answered(0)], [sampled])
    assert list(compare_overall([row(0)], [sampled])) == ["J", "F", "J&F"]  # of saved masks
    assert list(compare_overall([sampled], [sampled], names=["chain_see"])) == ["chain_see"]


# ---- answers in words -------------------------------------------------------------------------------------------


def test_answers_are_compared_by_accuracy_and_by_every_score_that_both_have():
    first = [replied(number, is_right=number > 1, scores={"brief": 0.5}) for number in range(4)]
    second = [replied(number, scores={"brief": 1.0, "kind": 1.0}) for number in range(4)]
    comparison = compare_results(first, second)
    assert not comparison.has_masks
    assert {each.name: (each.first, each.second, each.wins) for each in comparison.splits["test_s"]} == {
        "accuracy": (0.5, 1.0, 2),
        "brief": (0.5, 1.0, 4),
    }
    assert [(each.row, each.name) for each in comparison.wins] == [(1, "accuracy"), (0, "accuracy")]
    assert [each.name for each in comparison.by_reference_type["order"]] == ["accuracy"]


def test_models_are_compared_by_words_as_well_as_by_masks():
    differences = compare_results([answered(0, see=0.0)], [answered(0)]).splits["test_s"]
    names = [each.name for each in differences]
    assert names[:3] == ["J", "F", "J&F"] and {"format_rate", "category_accuracy", "chain_see"} <= set(names)
    assert {each.name: each.gain.mean for each in differences}["chain_see"] == 1.0


def test_a_rule_that_leaves_answers_out_of_its_total_is_not_compared_and_the_others_are():
    first = [replied(0, scores={"accuracy_mmsu": 1.0}), replied(1, scores={"accuracy_mmsu": None})]
    second = [replied(0, scores={"accuracy_mmsu": None}), replied(1, is_right=False, scores={"accuracy_mmsu": 0.0})]
    assert list(compare_overall(first, second)) == ["accuracy"]
