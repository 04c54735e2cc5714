"""out.json and out.jsonl, by hand."""

import dataclasses
import json
import random
from pathlib import Path

import pytest

from aurora_rl.data.ref_avs import MetadataRow
from aurora_rl.data.sample import AVSample
from aurora_rl.evaluation.comparison import compare_scores
from aurora_rl.evaluation.records import MaskScore
from aurora_rl.evaluation.scores import RowScore, mark_novelty, read_scores, score_tables, write_scores

ROW = RowScore(
    uid="a_drum_1",
    row=0,
    split="test_s",
    media_id="a",
    category="drum",
    reference_type="look",
    type_is_derived=True,
    text="The drum.",
    preset="refavs",
    J=0.5,
    F=0.75,
    S=0.25,
    S_per_frame=0.125,
    missing=False,
)


def row(number: int, split: str = "test_s", **values: object) -> RowScore:
    """A row about a clip of its own."""
    base = dataclasses.replace(ROW, row=number, uid=f"uid{number}", split=split, media_id=f"clip{number}")
    return dataclasses.replace(base, **{"text": f"Number {number}.", **values})


def null(number: int, s: float, **values: object) -> RowScore:
    return row(number, "test_n", category="null", reference_type="null", S=s, **values)


def scored(sample: AVSample) -> RowScore:
    """The row of an empty prediction."""
    nothing = MaskScore(J=0.0, F=0.0, f_curve=(), S=0.0, S_frames=0.0, is_missing=True)
    return RowScore.of_sample(sample, nothing, preset="refavs")


def sample_of(row: MetadataRow) -> AVSample:
    """A row of metadata.csv without its files."""
    return row.to_sample(media_id=row.media_id, fps=1.0, frame_paths=(), audio_path=None, mask_paths=())


# ---- tables -----------------------------------------------------------------------------------------------------


def test_split_has_the_means_of_its_rows():
    tables = score_tables([row(0, J=0.25, F=0.5), row(1, J=0.75, F=1.0, missing=True)])
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
    assert {name: list(groups) for name, groups in intervals.items()} == {
        "splits": ["test_s", "test_u", "test_n"],
        "mix": ["mean_of_splits", "row_weighted"],
        "by_category": ["drum", "null"],
        "by_reference_type": ["look", "null"],
        "by_novelty": ["test_u, new categories"],
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
    rows = [row(0, J=0.0), row(1, J=0.75), row(2, J=0.75, uid="uid1", text="Number 1.")]
    tables = score_tables(rows)
    assert (tables["duplicates"], tables["splits"]["test_s"]["J"]) == (1, 0.5)


def test_same_words_about_another_object_of_a_clip_are_no_duplicate():
    rows = [
        row(0, text="The drum."),
        row(1, text="The drum.", media_id="clip0"),
        row(2, uid="uid0", text="The left one."),
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


# ---- files ------------------------------------------------------------------------------------------------------


def test_rows_are_written_in_the_order_of_the_table_and_read_back(tmp_path: Path):
    rows = [row(2, text="„Ähre“"), row(0), null(1, 0.5)]
    write_scores(tmp_path / "made" / "out.json", rows, {"preset": "refavs"})
    assert read_scores(tmp_path / "made" / "out.json") == [rows[1], rows[2], rows[0]]
    assert json.loads((tmp_path / "made" / "out.json").read_text()) == {"preset": "refavs"}
    assert len(list((tmp_path / "made").iterdir())) == 2


@pytest.mark.parametrize("line", ["{", "[]", "{}", json.dumps({**dataclasses.asdict(ROW), "J": "0.5"})])
def test_line_that_is_no_row_is_an_error_that_names_it(tmp_path: Path, line: str):
    write_scores(tmp_path / "out.json", [row(1)], {})
    with (tmp_path / "out.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"out\.jsonl:2 is no row of scores"):
        read_scores(tmp_path / "out.json")


def test_row_that_is_there_twice_or_no_file_is_an_error(tmp_path: Path):
    write_scores(tmp_path / "out.json", [row(1), row(1)], {})
    with pytest.raises(ValueError, match="uid1#1' a second time"):
        read_scores(tmp_path / "out.json")
    with pytest.raises(ValueError, match=r"there is no .*other\.jsonl"):
        read_scores(tmp_path / "other.json")


# ---- two systems ------------------------------------------------------------------------------------------------


def test_difference_is_paired_by_row_and_counts_wins_losses_and_ties():
    first = [row(0, J=0.5), row(1, J=0.5), row(2, J=0.5), row(3, J=0.5)]
    second = [row(3, J=0.5), row(2, J=0.25), row(1, J=1.0), row(0, J=0.75)]
    j = {difference.name: difference for difference in compare_scores(first, second).splits["test_s"]}["J"]
    assert (j.first, j.second, j.gain.mean) == (0.5, 0.625, 0.125)
    assert (j.wins, j.losses, j.ties, j.verdict) == (2, 1, 1, "unclear")


def test_lower_s_is_a_win():
    comparison = compare_scores([null(0, 0.5), null(1, 0.75)], [null(0, 0.25), null(1, 0.5)])
    found = {difference.name: difference for difference in comparison.splits["test_n"]}
    assert (found["S"].gain.mean, found["S"].wins, found["S"].verdict) == (-0.25, 2, "better")
    assert (found["null_accuracy"].ties, found["false_alarm_rate"].verdict) == (2, "unclear")
    assert [(r.row, r.name, r.first, r.second) for r in comparison.wins] == [(1, "S", 0.75, 0.5), (0, "S", 0.5, 0.25)]


def test_rows_that_differ_most_come_first():
    first = [row(number, J=0.5, F=0.5) for number in range(5)]
    second = [row(number, J=0.5, F=f) for number, f in enumerate((0.5, 1.0, 0.75, 0.0, 0.25))]
    comparison = compare_scores(first, second)
    assert [r.row for r in comparison.wins] == [1, 2]
    assert [r.row for r in comparison.losses] == [3, 4]
    assert list(comparison.by_category) == ["drum"] and len(comparison.by_category["drum"]) == 1


def test_groups_are_compared_by_novelty_of_the_unseen_split():
    rows = [row(0, "test_u", category="cat", J=0.25), row(1, "test_u", J=0.5), row(2, J=0.5), null(3, 0.5)]
    first = mark_novelty(rows, ["drum"])
    second = [dataclasses.replace(r, J=r.J / 2 if r.novelty == "new" else 2 * r.J) for r in first]
    comparison = compare_scores(first, second)
    assert {name: [(d.name, d.gain.mean) for d in found] for name, found in comparison.by_novelty.items()} == {
        "test_u, new categories": [("J&F", -0.0625)],
        "test_u, seen categories": [("J&F", 0.25)],
    }
    assert compare_scores(rows, rows).by_novelty == {}
    assert comparison.derived_types == 4


def test_different_presets_rows_or_benchmarks_are_refused():
    with pytest.raises(ValueError, match=r"presets \['davis', 'refavs'\]"):
        compare_scores([row(0)], [row(0, preset="davis")])
    with pytest.raises(ValueError, match="2 rows are in one run only, the first is 'uid1#1'"):
        compare_scores([row(0), row(1)], [row(0), row(2)])
    with pytest.raises(ValueError, match="row 'uid0#0' is not the same in both"):
        compare_scores([row(0)], [row(0, category="cat")])
