"""Tables of an evaluation, by hand."""

import dataclasses

import pytest

from aurora_rl.evaluation.records import ClipScore, CompletionScore, RolloutScore, SampleResult
from aurora_rl.evaluation.summary import compare, summarise


def result(row: int, *, split: str = "test_s", category: str = "drum", **values: object) -> SampleResult:
    """A row that is right in everything but in what `values` say of `SampleResult`, its completion or its clip."""
    clip = ClipScore(J=1.0, F=1.0, f_curve=(1.0,), S=0.0, S_frames=0.0, iou=1.0, is_missing=False)
    greedy = CompletionScore(
        text="",
        category=category,
        format=1.0,
        category_correct=1.0,
        see=1.0,
        hear=1.0,
        clip=_replace(clip, values),
        pred_masks=(),
        preset_masks=(),
    )
    base = SampleResult(
        uid=f"uid{row}",
        row=row,
        split=split,
        media_id=f"clip{row}",
        category=category,
        reference="the drum",
        reference_type="name",
        preset="refavs",
        greedy=_replace(greedy, values),
    )
    return _replace(base, values)


def _replace(record, values):
    names = {field.name for field in dataclasses.fields(record)}
    return dataclasses.replace(record, **{name: value for name, value in values.items() if name in names})


def test_rates_are_means_over_rows():
    rows = [result(0), result(1, format=0.0, category_correct=0.0, iou=0.5), result(2, iou=0.75), result(3)]
    table = summarise(rows).overall
    assert (table["format_rate"], table["category_accuracy"], table["greedy_iou"]) == (0.75, 0.75, 0.8125)


def test_non_null_iou_j_and_f_leave_null_rows_out_and_s_takes_only_them():
    rows = [result(0, J=0.5, F=0.7, iou=0.4), result(1, category="null", J=0.9, S=0.2, S_frames=0.1, iou=0.8)]
    table = summarise(rows).overall
    assert (table["non_null_iou"], table["J"], table["F"]) == (0.4, 0.5, 0.7)
    assert table["J&F"] == pytest.approx(0.6)
    assert (table["S"], table["S_frames"], table["greedy_iou"]) == (0.2, 0.1, pytest.approx(0.6))


def test_null_accuracy_and_false_alarms_are_by_the_mask_and_the_answer_by_the_words():
    rows = [
        result(0, category="null"),
        result(1, category="null", S=0.01),
        result(2, category="null", category_correct=0.0),
        result(3, category="null", S=0.5, category_correct=0.0),
        result(4, S=0.5),
    ]
    table = summarise(rows).overall
    assert (table["null_accuracy"], table["false_alarm_rate"], table["null_answer_accuracy"]) == (0.5, 0.5, 0.5)


def test_measure_that_applies_to_no_row_is_none_not_zero():
    summary = summarise([result(0, see=None)])
    assert summary.overall["chain_see"] is None
    assert summary.overall["S"] is None
    assert summary.overall["sampled_reward"] is None
    assert "S" not in summary.intervals


def test_chain_measures_average_over_rows_whose_truth_is_known():
    assert summarise([result(0, see=1.0), result(1, see=0.0), result(2, see=None)]).overall["chain_see"] == 0.5


def test_sampled_reward_is_of_three_and_each_row_weighs_the_same():
    right, wrong = RolloutScore(1.0, 1.0, 1.0), RolloutScore(1.0, 0.0, 0.25)
    rows = [result(0, sampled=(right,)), result(1, sampled=(wrong, wrong, wrong))]
    table = summarise(rows).overall
    assert (table["sampled_reward"], table["sampled_iou"]) == ((3.0 + 1.25) / 2, (1.0 + 0.25) / 2)


def test_both_definitions_of_mix_are_labelled():
    rows = [result(0, J=0.2), result(1, J=0.4), result(2, J=0.9, split="test_u"), result(3, J=0.0, split="val")]
    mix = summarise(rows).mix
    assert mix["mean of splits"]["J"] == pytest.approx((0.3 + 0.9) / 2)
    assert mix["mean of rows"]["J"] == pytest.approx((0.2 + 0.4 + 0.9) / 3)


def test_there_is_no_mix_without_both_splits():
    assert summarise([result(0)]).mix == {}


def test_pooled_f_takes_one_threshold_for_all_clips():
    # Each clip alone reaches 1 (F = 1), at different thresholds; together the best is (1.0 + 0.4) / 2.
    rows = [result(0, f_curve=(1.0, 0.1)), result(1, f_curve=(0.4, 1.0))]
    table = summarise(rows).overall
    assert table["F"] == 1.0
    assert table["F_pooled"] == pytest.approx(0.7)


def test_missing_prediction_counts_zero_in_the_pooled_curve_and_is_reported():
    rows = [result(0, f_curve=(0.5, 0.8)), result(1, f_curve=(), F=0.0, is_missing=True)]
    summary = summarise(rows)
    assert summary.overall["F_pooled"] == pytest.approx(0.4)
    assert summary.num_missing == 1
    assert summarise(rows[1:]).overall["F_pooled"] == 0.0


def test_preset_without_curves_has_no_pooled_f():
    rows = [result(0, f_curve=(), preset="davis"), result(1, f_curve=(), is_missing=True, preset="davis")]
    assert summarise(rows).overall["F_pooled"] is None


def test_tables_by_split_type_and_category():
    rows = [
        result(0, iou=0.2),
        result(1, iou=0.6, reference_type="space", category="bell"),
        result(2, iou=0.4, split="test_u", reference_type=None, reference="the loudest drum"),
        result(3, iou=0.4, split="test_n", reference_type=None, category="null"),
    ]
    summary = summarise(rows)
    assert {name: table["greedy_iou"] for name, table in summary.splits.items()} == {
        "test_n": 0.4,
        "test_s": pytest.approx(0.4),
        "test_u": 0.4,
    }
    assert {name: table["num_rows"] for name, table in summary.reference_types.items()} == {
        "audio": 1,
        "name": 1,
        "null": 1,
        "space": 1,
    }
    assert summary.num_derived_types == 1
    assert summary.categories["drum"]["greedy_iou"] == pytest.approx(0.3)


def test_unseen_split_is_told_apart_by_training_categories():
    rows = [result(0, split="test_u", category="Tabla", J=0.4), result(1, split="test_u", category="drum", J=0.8)]
    splits = summarise(rows, train_categories=["drum"]).splits
    assert splits["test_u, known categories"]["J"] == 0.8
    assert splits["test_u, new categories"]["J"] == 0.4
    assert splits["test_u"]["J"] == pytest.approx(0.6)


def test_duplicates_count_and_are_reported():
    rows = [result(0, iou=0.0), result(1, iou=0.6), result(2, iou=0.6, media_id="clip1", uid="uid1")]
    summary = summarise(rows)
    assert (summary.num_rows, summary.num_clips, summary.num_duplicates) == (3, 2, 1)
    assert summary.overall["greedy_iou"] == pytest.approx(0.4)
    about_another_object = dataclasses.replace(rows[2], uid="uid2")
    assert summarise([*rows[:2], about_another_object]).num_duplicates == 0


def test_official_test_splits_have_8_duplicates(official_rows):
    rows = [
        result(
            row.row, uid=row.uid, split=row.split, media_id=row.media_id, category=row.category, reference=row.reference
        )
        for row in official_rows
        if row.split in ("test_s", "test_u")
    ]
    assert summarise(rows, num_resamples=2).num_duplicates == 8


def test_summary_does_not_depend_on_the_order_of_rows():
    rows = [result(row, J=0.1 * row, iou=(0.37 * row) % 1, f_curve=(0.3 * row % 1, 0.7)) for row in range(9)]
    assert summarise(rows) == summarise(rows[::-1]) == summarise(rows[4:] + rows[:4])


def test_rows_of_two_presets_are_an_error():
    with pytest.raises(ValueError, match="aurora.*refavs"):
        summarise([result(0), result(1, preset="aurora")])


def test_no_rows_are_an_error():
    with pytest.raises(ValueError, match="exactly one"):
        summarise([])


def test_gain_is_paired_by_row_whatever_the_order():
    before = [result(0, iou=0.0), result(1, iou=0.5)]
    after = [result(1, iou=0.75), result(0, iou=0.25)]
    gain = compare(before, after)["greedy_iou"]
    assert (gain.low, gain.mean, gain.high) == (0.25, 0.25, 0.25)


def test_gain_leaves_out_what_only_one_run_measured():
    before, after = [result(0)], [result(0, sampled=(RolloutScore(1.0, 1.0, 1.0),))]
    assert "sampled_reward" not in compare(before, after)


def test_gain_between_different_rows_is_an_error():
    with pytest.raises(ValueError, match="in one run only"):
        compare([result(0)], [result(0), result(1)])


def test_summary_becomes_plain_json():
    record = summarise([result(0)]).to_dict()
    assert record["intervals"]["greedy_iou"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert record["overall"]["num_rows"] == 1
