"""out.json and out.jsonl, by hand."""

import dataclasses
import json
import random
from pathlib import Path

import pytest

from aurora_rl.comparison import compare_scores
from aurora_rl.scores import RowScore, read_scores, score_tables, write_scores

ROW = RowScore(
    uid="a_drum_1",
    row=0,
    split="test_s",
    media_id="a",
    category="drum",
    reference_type=None,
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
    return row(number, "test_n", category="null", S=s, **values)


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
    novelty = score_tables(rows, train_categories=["Hair dryer"])["tables"]["by_novelty"]
    assert {name: table["J"] for name, table in novelty.items()} == {
        "test_u, seen categories": 0.25,
        "test_u, new categories": 0.75,
    }
    assert score_tables(rows)["tables"]["by_novelty"] == {}


def test_categories_and_reference_types_have_tables_of_their_own():
    rows = [row(0, J=0.25, reference_type="space"), row(1, "test_u", J=0.75), null(2, 0.5)]
    tables = score_tables(rows)["tables"]
    assert {name: table.get("J", table.get("S")) for name, table in tables["by_category"].items()} == {
        "drum": 0.5,
        "null": 0.5,
    }
    assert {name: table["missing"] for name, table in tables["by_reference_type"].items()} == {"space": 0, "unknown": 0}


def test_interval_is_over_clips_and_holds_the_mean():
    rows = [row(number, J=number / 20) for number in range(20)]
    alone = score_tables(rows)["intervals"]["test_s"]["J"]
    assert alone["low"] < alone["mean"] < alone["high"]
    in_pairs = [dataclasses.replace(r, media_id=f"clip{r.row // 2}") for r in rows]
    assert score_tables(in_pairs)["intervals"]["test_s"]["J"]["low"] < alone["low"]


def test_order_of_rows_changes_no_digit():
    rows = [row(number, ("test_s", "test_u")[number % 2], J=(0.37 * number) % 1) for number in range(30)]
    shuffled = random.Random(0).sample(rows, len(rows))
    assert score_tables(shuffled) == score_tables(rows)


def test_duplicates_count_and_are_reported():
    rows = [row(0, J=0.0), row(1, J=0.75), dataclasses.replace(row(2, J=0.75), media_id="clip1", text="Number 1.")]
    tables = score_tables(rows)
    assert (tables["duplicates"], tables["splits"]["test_s"]["J"]) == (1, 0.5)


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


def test_different_presets_rows_or_benchmarks_are_refused():
    with pytest.raises(ValueError, match=r"presets \['davis', 'refavs'\]"):
        compare_scores([row(0)], [row(0, preset="davis")])
    with pytest.raises(ValueError, match="2 rows are in one run only, the first is 'uid1#1'"):
        compare_scores([row(0), row(1)], [row(0), row(2)])
    with pytest.raises(ValueError, match="row 'uid0#0' is not the same in both"):
        compare_scores([row(0)], [row(0, category="cat")])
