"""Numbers of the comparison on multiple choice, worked out by hand."""

import dataclasses
import json
from pathlib import Path

import pytest

from aurora_rl.evaluation.records import write_results
from aurora_rl.scripts.stage_plan import read_plan
from recipes.compare_answers import compare, main
from tests.row_results import replied

ROOT = Path(__file__).resolve().parents[2]
CHOICES = {"choices": ["drum", "bell", "dog", "cat"], "answer": "bell", "question": "Which one sounds?"}


@pytest.fixture
def stages(tmp_path: Path) -> Path:
    """Two questions about one clip and two about others; seed 2 of GRPO is right once more than SFT."""
    lines = [
        {
            "uid": f"uid{n}",
            "split": "test_s",
            "clip": f"clip{n}",
            "kind": "sounding",
            "seen": ["drum", "bell"],
            **CHOICES,
        }
        for n in range(4)
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    right = {"sft": "0001", "sft_longer-1": "0011", "sft_longer-2": "0011", "grpo-1": "0011", "grpo-2": "0111"}
    for name, answers in right.items():
        folder = tmp_path / f"evaluate_{name}"
        rows = [replied(n, is_right=answer == "1") for n, answer in enumerate(answers)]
        rows = [dataclasses.replace(row, media_id=f"clip{max(1, row.row)}") for row in rows]
        write_results(folder / "results.jsonl", rows)
        write_results(folder / "results.audio_muted.jsonl", rows)
        write_results(folder / "results.frames_blanked.jsonl", rows)
        (tmp_path / "stages").mkdir(exist_ok=True)
        (tmp_path / "stages" / f"{name}.json").write_text(json.dumps({"cpu_seconds": 80.0}))
    return tmp_path


def test_seeds_are_pooled_and_paired(stages: Path) -> None:
    table = compare(stages)
    assert table["gain"].mean == pytest.approx(1 / 8)
    assert table["gain"].low == 0.0
    assert table["learned"].mean == pytest.approx((0.25 + 0.5) / 2) and not table["grpo_learns"]  # intervals overlap
    assert table["stages"]["grpo"]["by_seed"] == {"1": 0.5, "2": 0.75}
    assert table["stages"]["sft"]["accuracy"].mean == 0.25
    assert (table["questions"], table["clips"]) == (4, 3)


def test_muted_answers_stand_beside_what_sight_can_do(stages: Path) -> None:
    table = compare(stages)
    assert table["best_by_sight"] == 0.5
    assert table["stages"]["grpo"]["muted_above_sight"].mean == pytest.approx(0.625 - 0.5)
    assert table["stages"]["grpo"]["processor_seconds"] == {"grpo-1": 80.0, "grpo-2": 80.0}


def test_the_table_is_written(stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--stages", str(stages), "--output_dir", str(stages / "table")])
    printed = capsys.readouterr().out
    assert "GRPO - SFT continued: +0.125 [" in printed and "intervals apart: no" in printed
    assert "Muted at most 0.05 above sight: no" in printed  # 0.125 above
    assert json.loads((stages / "table" / "result.json").read_text())["numbers"]["questions"] == 4


@pytest.mark.parametrize("name", ["choice/stages", "choice/think_stages", "moments/stages"])
def test_the_last_stage_of_the_recipe_finds_what_its_stages_leave(
    stages: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(ROOT)
    write_moments(stages)
    plan = read_plan(ROOT / "recipes" / "synthetic" / f"{name}.yaml", output_dir=stages)
    evaluated = {path.name for path in stages.glob("evaluate_*")}
    assert evaluated | {"evaluate_grpo-3", "evaluate_sft_longer-3"} == set(plan.stages["table"].needs)
    _, script, *arguments = plan.stages["table"].command
    assert script == "recipes/compare_answers.py"
    main(arguments)
    assert all((plan.stages["table"].folder / output).is_file() for output in plan.stages["table"].outputs)


def test_stages_that_were_not_evaluated_are_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "questions.jsonl").write_text("")
    with pytest.raises(FileNotFoundError, match="run the stages first"):
        compare(tmp_path)


def moment(number: int, split: str, times: list[list[float]], *, seen: list[str]) -> str:
    row = {"id": f"uid{number}", "split": split, "frames": "f", "reference": "the bell", "category": "bell"}
    return json.dumps({**row, "times": times, "seen": seen}) + "\n"


def write_moments(stages: Path) -> None:
    """Write eight questions about times and each stage's answers to four of them.

    In view the best single answer is 0-1 (of times up to 2 s), out of view it is never.
    """
    rows = [
        moment(10, "train", [[0.0, 1.0]], seen=["bell"]),
        moment(11, "train", [[0.0, 1.0]], seen=["bell"]),
        moment(12, "train", [[0.0, 2.0]], seen=["bell"]),
        moment(13, "train", [], seen=["drum"]),
        moment(0, "test_s", [[0.5, 1.0]], seen=["bell"]),
        moment(1, "test_s", [], seen=["bell"]),
        moment(2, "test_s", [], seen=["drum"]),
        moment(3, "test_s", [[0.0, 1.0]], seen=["bell"]),
    ]
    (stages / "data" / "moments.jsonl").write_text("".join(rows))
    overlaps = {"sft": 0.1, "sft_longer-1": 0.2, "sft_longer-2": 0.2, "grpo-1": 0.25, "grpo-2": 0.35}
    for name, iou in overlaps.items():
        answers = [replied(n, scores={"iou": iou}) for n in range(4)]
        for file in ("results.jsonl", "results.audio_muted.jsonl"):
            write_results(stages / f"evaluate_{name}" / file, answers)
        (stages / f"evaluate_{name}" / "results.frames_blanked.jsonl").unlink()  # that recipe blanks nothing


def test_times_are_compared_by_their_overlap_beside_the_best_single_answer_of_sight(stages: Path) -> None:
    write_moments(stages)
    table = compare(stages, "iou")
    assert table["best_by_sight"] == pytest.approx((0.5 + 0 + 1 + 1) / 4)
    assert table["gain"].mean == pytest.approx(0.1)
    assert table["stages"]["sft"]["iou"].mean == pytest.approx(0.1)


def test_questions_of_other_data_are_refused(stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = stages / "data" / "questions.jsonl"
    questions.write_text("".join(questions.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(SystemExit):
        main(["--stages", str(stages), "--output_dir", str(stages / "table")])
    assert "the first is 'uid3': evaluate all stages on the rows of these data" in capsys.readouterr().err
