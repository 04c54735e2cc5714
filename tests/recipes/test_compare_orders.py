"""The table of curricula, worked out by hand, and its place at the end of recipes/synthetic/audio_qa/stages.yaml."""

import json
from pathlib import Path

import pytest

from aurora_rl.evaluation.records import write_results
from aurora_rl.scripts.compare_orders import compare, main
from aurora_rl.scripts.stage_plan import read_plan
from tests.row_results import replied

ROOT = Path(__file__).resolve().parents[2]
PLANNED, FREE = "PlannedAnswerInWords", "ThinkAnswerInWords"
#: Which of four questions each evaluation answers right.
RIGHT = {
    f"sft-{PLANNED}": "0001",
    f"sft-{FREE}": "0000",
    f"grpo-{PLANNED}-shuffled-1": "0011",
    f"grpo-{PLANNED}-shuffled-2": "0011",
    f"grpo-{PLANNED}-easy_to_hard-1": "0111",
    f"grpo-{PLANNED}-easy_to_hard-2": "0011",
}
#: Shares of dead groups (foretold, counted) of each step.
DEAD = {
    f"grpo-{PLANNED}-easy_to_hard-1": [(0.5, 0.7)] * 10,
    f"grpo-{PLANNED}-easy_to_hard-2": [(0.5, 0.6)] * 9 + [(0.1, 0.3)],
    f"dead_groups-{PLANNED}-shuffled": [(0.25, 0.0), (0.25, 0.5)],
    f"dead_groups_kept-{PLANNED}-shuffled": [(0.25, 0.5)],
}


@pytest.fixture
def stages(tmp_path: Path) -> Path:
    for name, answers in RIGHT.items():
        rows = [replied(n, is_right=answer == "1") for n, answer in enumerate(answers)]
        for file in ("results.jsonl", "results.audio_muted.jsonl"):
            write_results(tmp_path / f"evaluate_{name}" / file, rows)
    for name, steps in DEAD.items():
        lines = [{"loss": 0.0, "dead_groups/predicted": a, "frac_reward_zero_std": b} for a, b in steps]
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"log_history": [*lines, {"train_loss": 0.0}]}))
    return tmp_path


def test_accuracies_are_paired_by_seed_and_question(stages: Path) -> None:
    table = compare(stages)
    assert table["accuracy"]["structured, easy_to_hard"].mean == 0.625
    assert table["by_seed"]["structured, easy_to_hard"] == {1: 0.75, 2: 0.5}
    gains = {title: gain.mean for title, gain in table["gain"].items()}
    assert gains == {
        "GRPO, structured, shuffled": 0.25,
        "GRPO, structured, easy_to_hard": 0.375,
        "structured, easy_to_hard, instead of shuffled": 0.125,
        "structured instead of free, SFT": 0.25,
    }


def test_dead_groups_are_told_of_all_rows_of_those_that_are_left_and_by_tenths(stages: Path) -> None:
    table = compare(stages)
    still, name = table["dead_groups_without_learning"], f"{PLANNED}-shuffled"
    assert (still["dead_groups"][name].steps, still["dead_groups"][name].difference.mean) == (2, 0.0)
    assert still["dead_groups_kept"][name].difference.mean == 0.25
    tenths = table["dead_groups_in_training"][f"{PLANNED}-easy_to_hard"]
    assert [part.steps for part in tenths] == [2] * 10
    assert (tenths[0].foretold, tenths[0].counted) == pytest.approx((0.5, 0.65))
    assert (tenths[-1].foretold, tenths[-1].counted) == pytest.approx((0.3, 0.5))


def test_the_last_stage_of_the_recipe_writes_the_table(stages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan = read_plan(ROOT / "recipes" / "synthetic" / "audio_qa" / "stages.yaml", output_dir=stages)
    stage = plan.stages["table"]
    assert {f"evaluate_{name}" for name in RIGHT} | (DEAD.keys() - RIGHT.keys()) <= set(stage.needs)
    assert set(DEAD) <= plan.stages.keys()
    _, script, *arguments = stage.command
    assert script == "recipes/compare_orders.py"
    main(arguments)
    assert all((stage.folder / output).is_file() for output in stage.outputs)
    assert (
        "| learning rate 0, all rows, structured, shuffled | 2 | 0.250 | 0.250 |"
        in (stage.folder / "table.md").read_text()
    )


def test_stages_that_were_not_run_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the stages first"):
        compare(tmp_path)
