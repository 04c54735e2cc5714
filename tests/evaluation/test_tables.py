"""Tables of an evaluation's rows, by hand."""

import dataclasses
import random

import pytest

from aurora_rl.data.ref_avs import MetadataRow
from aurora_rl.data.sample import AVSample
from aurora_rl.evaluation.measures import find_measure
from aurora_rl.evaluation.records import MaskScore, RolloutScore, RowResult
from aurora_rl.evaluation.tables import mark_novelty, number_tables, score_tables, table
from tests.row_results import answered, null, replied, rollout, row


def scored(sample: AVSample) -> RowResult:
    """The row of an empty prediction."""
    nothing = MaskScore(J=0.0, F=0.0, f_curve=(), S=0.0, S_per_frame=0.0, is_missing=True)
    return RowResult.of_sample(sample, nothing, preset="refavs")


def sample_of(row: MetadataRow) -> AVSample:
    """A row of metadata.csv without its files."""
    return row.to_sample(media_id=row.media_id, fps=1.0, frame_paths=(), audio_path=None, mask_paths=())


def test_split_has_the_means_of_its_rows():
    tables = score_tables([row(0, J=0.25, F=0.5), row(1, J=0.75, F=1.0, is_missing=True)])
    assert tables["splits"] == {"test_s": {"J": 0.5, "F": 0.75, "J&F": 0.625, "n": 2, "missing": 1}}


def test_null_split_has_both_poolings_and_the_share_of_right_rows():
    tables = score_tables([null(0, 0.0), null(1, 0.5), null(2, 0.25), null(3, 0.25)])
    assert tables["splits"]["test_n"] == {
        "S": 0.25,
        "S_per_frame": 0.125,
        "null_accuracy": 0.25,
        "false_alarm_rate": 0.75,
        "n": 4,
        "missing": 0,
    }


def test_split_with_both_kinds_of_rows_has_both_kinds_of_numbers():
    table = score_tables([row(0, "val"), dataclasses.replace(null(1, 0.5), split="val", J=1.0)])["splits"]["val"]
    assert (table["J"], table["n"], table["S"], table["n_null"]) == (0.5, 1, 0.5, 1)


def test_mix_is_defined_in_two_ways():
    rows = [row(0, J=0.25), row(1, J=0.75), row(2, "test_u", J=1.0), null(3, 0.5, J=0.0)]
    mix = score_tables(rows)["mix"]
    assert mix["mean_of_splits"]["J"] == 0.75
    assert mix["row_weighted"]["J"] == pytest.approx(2 / 3)
    assert score_tables(rows[:2])["mix"] == {"mean_of_splits": None, "row_weighted": None}


def test_unseen_split_is_told_apart_by_the_categories_of_the_training_split():
    rows = [row(0, "test_u", category="hair-dryer", J=0.25), row(1, "test_u", J=0.75), row(2, category="hair-dryer")]
    rows.append(row(3, "test_u", category="null"))
    marked = mark_novelty(rows, ["Hair dryer"])
    assert [r.novelty for r in marked] == ["seen", "new", "seen", None]
    assert {name: table["J"] for name, table in score_tables(marked)["tables"]["by_novelty"].items()} == {
        "test_u, seen categories": 0.25,
        "test_u, new categories": 0.75,
    }
    assert mark_novelty(rows, []) == rows
    assert score_tables(rows)["tables"]["by_novelty"] == {}


def test_categories_and_reference_types_have_tables_of_their_own():
    rows = [row(0, J=0.25, reference_type="space"), row(1, "test_u", J=0.75), null(2, 0.5, type_is_derived=False)]
    tables = score_tables(rows)["tables"]
    assert {name: table.get("J", table.get("S")) for name, table in tables["by_category"].items()} == {
        "drum": 0.5,
        "null": 0.5,
    }
    assert {name: table["missing"] for name, table in tables["by_reference_type"].items()} == {
        "look": 0,
        "space": 0,
        "null": 0,
    }
    assert score_tables(rows)["derived_types"] == 2


def test_row_says_whether_its_type_is_from_the_sentence(official_rows):
    sample = sample_of(official_rows[0])
    assert (scored(sample).reference_type, scored(sample).type_is_derived) == ("look", True)
    told = scored(dataclasses.replace(sample, reference_type="name"))
    assert (told.reference_type, told.type_is_derived) == ("name", False)


def test_interval_is_over_clips_and_holds_the_mean():
    rows = [row(number, J=number / 20) for number in range(20)]
    alone = score_tables(rows)["intervals"]["splits"]["test_s"]["J"]
    assert alone["low"] < alone["mean"] < alone["high"]
    in_pairs = [dataclasses.replace(r, media_id=f"clip{r.row // 2}") for r in rows]
    assert score_tables(in_pairs)["intervals"]["splits"]["test_s"]["J"]["low"] < alone["low"]


def test_mix_and_every_table_have_intervals():
    rows = [row(number, ("test_s", "test_u")[number % 2], J=number / 20) for number in range(20)]
    tables = score_tables(mark_novelty([*rows, null(20, 0.5), null(21, 0.0)], ["cat"]))
    intervals = tables["intervals"]
    assert set(intervals.pop("overall")) == set(tables["overall"]) - {"n", "n_null", "missing"}
    assert {name: list(groups) for name, groups in intervals.items()} == {
        "splits": ["test_s", "test_u", "test_n"],
        "mix": ["mean_of_splits", "row_weighted"],
        "by_category": ["drum", "null"],
        "by_reference_type": ["look", "null"],
        "by_novelty": ["test_u, new categories"],
        "by_letter": [],
    }
    for groups in intervals.values():
        assert all(
            number["low"] <= number["mean"] <= number["high"] for of in groups.values() for number in of.values()
        )
    assert intervals["mix"]["mean_of_splits"]["J"]["mean"] == tables["mix"]["mean_of_splits"]["J"]
    assert intervals["by_category"]["drum"]["J"] == intervals["mix"]["row_weighted"]["J"]
    assert set(intervals["by_category"]["null"]) == {"S", "S_per_frame", "null_accuracy", "false_alarm_rate"}


def test_rows_about_a_single_clip_have_no_interval():
    rows = [row(0, J=0.0), row(1, category="cat"), row(2, category="cat", media_id="clip1")]
    intervals = score_tables(rows)["intervals"]
    assert intervals["by_category"] == {"cat": {}, "drum": {}}
    assert "J" in intervals["splits"]["test_s"]


def test_order_of_rows_changes_no_digit():
    rows = [row(number, ("test_s", "test_u")[number % 2], J=(0.37 * number) % 1) for number in range(30)]
    shuffled = random.Random(0).sample(rows, len(rows))
    assert score_tables(shuffled) == score_tables(rows)


def test_duplicates_count_and_are_reported():
    rows = [row(0, J=0.0), row(1, J=0.75), row(2, J=0.75, uid="uid1", reference="Number 1.")]
    tables = score_tables(rows)
    assert (tables["duplicates"], tables["splits"]["test_s"]["J"]) == (1, 0.5)


def test_same_words_about_another_object_of_a_clip_are_no_duplicate():
    rows = [
        row(0, reference="The drum."),
        row(1, reference="The drum.", media_id="clip0"),
        row(2, uid="uid0", reference="The left one."),
    ]
    assert score_tables(rows)["duplicates"] == 0


def test_official_test_splits_have_8_duplicates_and_202_rows_of_seen_categories_in_the_unseen_split(official_rows):
    rows = [scored(sample_of(row)) for row in official_rows if row.split in ("test_s", "test_u")]
    trained = {row.category for row in official_rows if row.split == "train"}
    tables = score_tables(mark_novelty(rows, trained))
    assert tables["duplicates"] == 8
    assert {name: table["n"] for name, table in tables["tables"]["by_novelty"].items()} == {
        "test_u, new categories": 1454,
        "test_u, seen categories": 202,
    }


@pytest.mark.parametrize("rows", [[], [row(0), row(1, preset="davis")]], ids=["none", "two presets"])
def test_rows_of_no_or_of_two_presets_are_an_error(rows):
    with pytest.raises(ValueError, match="exactly one"):
        score_tables(rows)


# ---- a model's completions --------------------------------------------------------------------------------------


def test_rates_are_means_over_rows():
    rows = [answered(0), answered(1, format=0.0, category_correct=0.0, iou=0.5), answered(2, iou=0.75), answered(3)]
    numbers = table(rows)
    assert (numbers["format_rate"], numbers["category_accuracy"], numbers["greedy_iou"]) == (0.75, 0.75, 0.8125)


def test_non_null_iou_j_and_f_leave_null_rows_out_and_s_takes_only_them():
    rows = [answered(0, J=0.5, F=0.7, iou=0.4), answered(1, category="null", J=0.9, S=0.2, S_per_frame=0.1, iou=0.8)]
    numbers = table(rows)
    assert (numbers["non_null_iou"], numbers["J"], numbers["F"]) == (0.4, 0.5, 0.7)
    assert numbers["J&F"] == pytest.approx(0.6)
    assert (numbers["S"], numbers["S_per_frame"], numbers["greedy_iou"]) == (0.2, 0.1, pytest.approx(0.6))


def test_null_accuracy_and_false_alarms_are_by_the_mask_and_the_answer_by_the_words():
    rows = [
        answered(0, category="null"),
        answered(1, category="null", S=0.01),
        answered(2, category="null", category_correct=0.0),
        answered(3, category="null", S=0.5, category_correct=0.0),
        answered(4, S=0.5),
    ]
    numbers = table(rows)
    assert (numbers["null_accuracy"], numbers["false_alarm_rate"], numbers["null_answer_accuracy"]) == (0.5, 0.5, 0.5)


def test_measure_that_applies_to_no_row_is_left_out_and_is_not_zero():
    scores = score_tables([answered(0, see=None), answered(1, see=None)])
    assert not {"chain_see", "S", "sampled_reward"} & {*scores["overall"], *scores["intervals"]["overall"]}
    assert scores["intervals"]["overall"]["greedy_iou"] == {"mean": 1.0, "low": 1.0, "high": 1.0}


def test_chain_measures_average_over_rows_whose_truth_is_known():
    assert table([answered(0, see=1.0), answered(1, see=0.0), answered(2, see=None)])["chain_see"] == 0.5


def test_sampled_reward_is_of_three_and_each_row_weighs_the_same():
    right, wrong = rollout(1.0, 1.0, 1.0), rollout(1.0, 0.0, 0.25)
    numbers = table([answered(0, sampled=(right,)), answered(1, sampled=(wrong, wrong, wrong))])
    assert (numbers["sampled_reward"], numbers["sampled_iou"]) == ((3.0 + 1.25) / 2, (1.0 + 0.25) / 2)


def test_pooled_f_takes_one_threshold_for_all_clips():
    # Each clip alone reaches 1 (F = 1), at different thresholds; together the best is (1.0 + 0.4) / 2.
    rows = [answered(0, f_curve=(1.0, 0.1)), answered(1, "test_u", f_curve=(0.4, 1.0))]
    scores = number_tables(rows)
    assert (scores["overall"]["F"], scores["overall"]["F_pooled"]) == (1.0, pytest.approx(0.7))
    assert (scores["mix"]["mean_of_splits"]["F_pooled"], scores["mix"]["row_weighted"]["F_pooled"]) == (
        1.0,
        pytest.approx(0.7),
    )


def test_missing_prediction_counts_zero_in_the_pooled_curve_and_is_counted():
    rows = [row(0, f_curve=(0.5, 0.8)), row(1, F=0.0, is_missing=True)]
    assert (table(rows)["F_pooled"], table(rows)["missing"]) == (pytest.approx(0.4), 1)
    assert table(rows[1:])["F_pooled"] == 0.0


def test_preset_without_curves_has_no_pooled_f():
    assert "F_pooled" not in table([row(0, preset="davis"), row(1, is_missing=True, preset="davis")])


def test_tables_count_clips_and_rows_of_derived_types():
    rows = [answered(0, iou=0.2), answered(1, media_id="clip0", type_is_derived=False), answered(2, category="null")]
    scores = number_tables(rows)
    assert (scores["clips"], scores["derived_types"], scores["overall"]["n"], scores["overall"]["n_null"]) == (
        2,
        2,
        2,
        1,
    )
    assert scores["tables"]["by_category"]["drum"]["greedy_iou"] == pytest.approx(0.6)


# ---- answers in words, and boxes --------------------------------------------------------------------------------


def test_accuracy_counts_unreadable_answers_as_wrong():
    numbers = table([replied(0), replied(1, is_right=False), replied(2, None, is_right=False), replied(3)])
    assert (numbers["accuracy"], numbers["unreadable"], numbers["n"], numbers["format_rate"]) == (0.5, 1, 4, 0.75)
    assert "missing" not in numbers and "J" not in numbers


def test_every_score_of_a_task_is_a_measure_of_its_own_name():
    sampled = (RolloutScore(True, {"brief": 1.0}), RolloutScore(False, {"brief": None}))
    rows = [replied(0, scores={"brief": 0.25}, sampled=sampled), replied(1, scores={"brief": 0.75})]
    scores = score_tables(rows)
    assert {"brief": 0.5, "sampled_brief": 1.0, "sampled_accuracy": 0.5}.items() <= scores["overall"].items()
    assert scores["intervals"]["overall"]["brief"] == {"mean": 0.5, "low": 0.25, "high": 0.75}
    measure = find_measure("sampled_brief", {"brief": "short answers"})
    assert (measure.label, measure.meaning, measure.value(rows[0])) == ("Sampled brief", "short answers", 1.0)


def test_right_categories_are_not_counted_under_a_second_name():
    assert "accuracy" not in table([answered(0)]) and table([answered(0)])["category_accuracy"] == 1.0


def test_boxes_are_means_over_rows_and_skip_those_without_the_object():
    boxes = {"box_iou": 0.75, "box_hits": 1.0, "point_in_mask": 0.5, "presence": 0.5}
    nothing = {"box_iou": None, "box_hits": None, "point_in_mask": None, "presence": 1.0}
    numbers = table([replied(0, scores=boxes), replied(1, scores=nothing)])
    assert {name: numbers[name] for name in boxes} == {**boxes, "presence": 0.75}


def test_the_type_of_a_question_is_not_derived_from_its_words(train_samples):
    untold = dataclasses.replace(train_samples[0], reference="What sounds first?", reference_type=None, answer="dog")
    told = dataclasses.replace(untold, row=1, reference_type="order")
    rows = [RowResult.of_sample(sample, None, preset="refavs") for sample in (untold, told)]
    assert [(each.reference_type, each.type_is_derived) for each in rows] == [(None, False), ("order", False)]
    assert list(number_tables(rows)["tables"]["by_reference_type"]) == ["order"]
