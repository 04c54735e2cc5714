"""One file of results for all systems: numbers by name, figures beside bars, and what was not run named so."""

import json
from pathlib import Path

import pytest

from aurora_rl.evaluation.figures import Figure, write_result
from aurora_rl.evaluation.intervals import Interval
from aurora_rl.scripts.stage_plan import read_plan
from recipes.count_matchers import main as count_matchers
from recipes.count_matchers import read_questions
from recipes.gather_seeds import SYSTEMS, main, read_result

ROOT = Path(__file__).resolve().parents[2]
PLANS = [ROOT / "recipes" / "synthetic" / name for name in ("seeds.yaml", "seeds_full.yaml")]


def write_temporal(folder: Path, *, system: str = "temporal") -> None:
    gain = Figure.of("gain", Interval(0.02, -0.01, 0.05), bar="above 0", met=False, note="too few steps")
    numbers = {"gain": Interval(0.02, -0.01, 0.05)}
    figures = [gain, Figure("seeds", 3)]
    write_result(folder, system=system, size="3 seeds", figures=figures, numbers=numbers, table="| a |")


def test_systems_are_gathered_and_those_that_were_not_run_are_named(tmp_path: Path, capsys) -> None:
    write_temporal(tmp_path / "temporal" / "table")
    mmau = ROOT / "tests" / "data" / "mmau_test_mini.json.xz"
    count_matchers(["--mmau", str(mmau), "--output_dir", str(tmp_path / "matchers")])
    main(["--stages", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == list(SYSTEMS) and results["mcq"] == {"status": "not run"}
    assert results["matchers"]["mmau_mini"] == {
        "bare_letter": 2,
        "letter_and_text": 967,
        "the_answer_is": 907,
        "wrong_choice_right": 9,
    }
    assert (results["matchers"]["met"], results["matchers"]["bars"], results["temporal"]["met"]) == (4, 4, 0)
    assert results["temporal"]["gain"] == {"mean": 0.02, "low": -0.01, "high": 0.05}
    page = (tmp_path / "results.md").read_text()
    assert "Not run; `make seeds-full` does." in page and "| a |" in page
    row = "gain | 0.020 [-0.010, 0.050] | above 0 | not met: too few steps |"
    assert row in page and f"| temporal: {row}" in capsys.readouterr().out


def test_another_systems_result_is_refused(tmp_path: Path) -> None:
    write_temporal(tmp_path / "mcq" / "table")
    with pytest.raises(ValueError, match="is no result of mcq"):
        read_result(tmp_path, "mcq")


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_each_stage_is_a_system_whose_own_stages_end_in_its_result(path: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    for name, stage in read_plan(path).stages.items():
        assert name in SYSTEMS and not stage.needs
        if stage.config is not None:
            outputs = [f"table/{output}" for output in read_plan(stage.config).stages["table"].outputs]
            assert set(stage.outputs) <= set(outputs)


@pytest.mark.parametrize("figures", [{}, [{}], [3]])
def test_a_result_of_another_form_is_refused(tmp_path: Path, figures: object, capsys) -> None:
    write_temporal(tmp_path / "temporal")
    result = tmp_path / "temporal" / "result.json"
    result.write_text(json.dumps({**json.loads(result.read_text()), "figures": figures}))
    with pytest.raises(SystemExit):
        main(["--stages", str(tmp_path)])
    assert "is no result of temporal" in capsys.readouterr().err


def test_a_missing_folder_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--stages", str(tmp_path / "seed")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "holds no question"),
        ("[1]", "row 0: expected `choices`"),
        ('{"choices": null, "answer": "a"}', "row 0: expected `choices`"),
        ("{", "cannot read"),
    ],
)
def test_files_that_hold_no_questions_are_refused(tmp_path: Path, text: str, said: str, capsys) -> None:
    (tmp_path / "questions.jsonl").write_text(text)
    with pytest.raises(SystemExit):
        count_matchers(["--mmau", str(tmp_path / "questions.jsonl"), "--output_dir", str(tmp_path / "out")])
    assert said in capsys.readouterr().err


def test_a_line_separator_inside_a_question_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"choices": ["a\u2028b", "c"], "answer": "c"}\n', encoding="utf-8")
    assert read_questions(path) == [(["a\u2028b", "c"], 1)]
