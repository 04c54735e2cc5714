"""Scores of questions beside the same with a modality taken away, worked out by hand."""

import dataclasses
from pathlib import Path

import pytest

from aurora_rl.cli import main
from aurora_rl.cli.evaluate import print_scores
from aurora_rl.evaluation.ablations import ABLATIONS
from aurora_rl.evaluation.of_model import _check_rows_have
from aurora_rl.evaluation.records import asked_differently, read_results, write_evaluation, write_results
from aurora_rl.evaluation.side_by_side import letter_rows, with_ablations
from aurora_rl.evaluation.tables import score_tables
from aurora_rl.evaluation.taken_away import ablated_tables, beside
from aurora_rl.report.score_page import write_score_page
from tests.row_results import chose

#: Four questions, three of which are answered rightly; the last has no sound.
WHOLE = [chose(0, "a", "a"), chose(1, "b", "b"), chose(2, "b", "c"), chose(3, "d", "d", reference_type="look")]
#: Muted, the first is right, the second cannot be read, and the last is as it was.
MUTED = [chose(0, "a", "a"), chose(1, "b", None), chose(2, "b", "a"), chose(3, "d", "d", reference_type="look")]


@pytest.fixture
def scores() -> dict:
    changed = {row.key for row in MUTED[:3]}
    tables = ablated_tables(MUTED, changed)
    muted = beside(WHOLE, MUTED, changed, tables)
    return score_tables(WHOLE) | {"source": "a model", "ablations": {"audio_muted": muted}}


def test_rows_that_lack_what_is_taken_away_are_counted_and_left_out(scores):
    muted = scores["ablations"]["audio_muted"]
    assert (muted["unchanged"], muted["overall"]["n"], muted["overall"]["unreadable"]) == (1, 3, 1)
    assert (scores["overall"]["accuracy"], muted["overall"]["accuracy"]) == (0.75, pytest.approx(1 / 3))
    assert muted["differences"]["accuracy"]["mean"] == pytest.approx(-1 / 3)  # two of these three were right


def test_every_group_has_its_muted_numbers_beside_it(scores):
    types = with_ablations(scores, "tables", "by_reference_type")
    assert {name: numbers["accuracy"] for name, numbers in types.items()} == {
        "look": 1.0,
        "order": pytest.approx(2 / 3),
        "order, audio muted": pytest.approx(1 / 3),
    }
    letters = with_ablations(scores, "tables", "by_letter")
    assert {name: numbers["accuracy"] for name, numbers in letters.items()} == {
        **{"A": 1.0, "A, audio muted": 1.0, "B": 0.5, "B, audio muted": 0.0, "D": 1.0}
    }


def test_letters_are_counted_as_they_are_right_and_as_they_are_chosen(scores):
    assert letter_rows(scores) == {
        "right": {"A": 1, "B": 2, "C": 0, "D": 1},
        "chosen": {"A": 1, "B": 1, "C": 1, "D": 1, "none": 0},
        "chosen, audio muted": {"A": 2, "B": 0, "none": 1},
    }


def test_table_and_page_say_what_was_left_out(scores, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    print_scores(scores)
    printed = capsys.readouterr().out
    write_score_page(tmp_path / "page.html", scores, WHOLE)
    page = (tmp_path / "page.html").read_text()
    assert "audio_muted: 1 rows lack it, its numbers leave them out" in printed and "1 rows lack it" in page
    for words in ("order, audio muted", "B, audio muted", "chosen, audio muted"):
        assert words in printed and words in page
    assert "0.3333 [" in printed and "accuracy \N{MINUS SIGN}0.333 [" in page


def test_two_evaluations_with_other_prompts_are_called_so(scores, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, instruction in (("base", "{reference} Answer."), ("trained", "{reference} Think.")):
        write_evaluation(tmp_path / name, WHOLE, scores | {"asked": {"instruction": instruction, "fps": 1.0}})
    page = tmp_path / "page.html"
    command = ["compare", *(str(tmp_path / name) for name in ("base", "trained")), "--report", str(page)]
    assert main(command) == 0
    assert "The two were asked differently, in instruction:" in capsys.readouterr().out
    assert "asked differently</strong>, in instruction:" in page.read_text()
    assert asked_differently(tmp_path / "base", tmp_path / "base") == []
    asked = {"instruction": "{reference} Answer.", "fps": 1.0, "environment_factory": "mine.py:Ears"}
    write_evaluation(tmp_path / "tools", WHOLE, scores | {"asked": asked})
    assert asked_differently(tmp_path / "base", tmp_path / "tools") == ["environment_factory"]
    write_evaluation(tmp_path / "unknown", WHOLE, scores)
    assert asked_differently(tmp_path / "base", tmp_path / "unknown") == []


def test_choices_survive_the_file_and_wrong_ones_are_named(tmp_path: Path):
    write_results(tmp_path / "results.jsonl", MUTED)
    assert read_results(tmp_path / "results.jsonl") == MUTED
    text = (tmp_path / "results.jsonl").read_text()
    for old, new, words in (
        ('"chosen": 0', '"chosen": 4', "chosen is 4: expected the number of one of 4 choices"),
        ('"answer": "a"', '"answer": "e"', "answer is 'e': expected one of the choices"),
        ('"choices": ["a"', '"choices": [1', "choices are"),
    ):
        (tmp_path / "wrong.jsonl").write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match=words):
            read_results(tmp_path / "wrong.jsonl")


def test_an_ablation_that_changes_no_row_is_refused(train_samples):
    silent = [dataclasses.replace(sample, audio_path=None) for sample in train_samples[:2]]
    assert not any(map(ABLATIONS["audio_muted"].changes, silent))
    _check_rows_have(["audio_muted"], [*silent, train_samples[2]])
    with pytest.raises(ValueError, match="audio_muted would repeat the run, as none of the rows has sound"):
        _check_rows_have(["audio_muted"], silent)
