"""The last stages of the demo, run on what the stages before them leave."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.evaluation.records import write_results
from aurora_rl.report.training_page import Run
from aurora_rl.scripts.report import collect, read_run
from aurora_rl.scripts.stage_plan import Plan, read_plan
from tests.report.test_training_page import result_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def earlier_stages(tiny_benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output folder: evaluations of test_s and test_n, all right or all wrong, and what trainers log."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "data").symlink_to(tiny_benchmark)
    data_args = DataArguments(str(tiny_benchmark), chains="chains.jsonl", fps=2.0, num_frames=4)
    samples = [sample for split in ("test_s", "test_n") for sample in load_split(data_args, split)]
    answers = {
        True: [result_of(s, is_right=True) for s in samples],
        False: [result_of(s, is_right=False) for s in samples],
    }
    for name, is_right in {"sft": True, "sft_early": False, "grpo": True, "grpo_without_guards": False}.items():
        write_results(tmp_path / "eval" / name / "results.jsonl", answers[is_right])
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "loss": 0.5}]}))
    write_results(tmp_path / "eval" / "sft" / "results.audio_muted.jsonl", answers[False])
    return tmp_path


def run_stage(plan: Plan, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, script, *arguments = plan.stages[name].command
    plan.stages[name].folder.mkdir()  # as the runner does
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(script, run_name="__main__")


@pytest.mark.parametrize("file", ["demo.yaml", "smoke.yaml"])
def test_last_stages_leave_the_page_and_the_numbers(file: str, earlier_stages: Path, monkeypatch) -> None:
    plan = read_plan(ROOT / "recipes" / "synthetic" / file, output_dir=earlier_stages)
    for name in ("report", "without_guards"):
        run_stage(plan, name, monkeypatch)
        assert all((plan.stages[name].folder / output).is_file() for output in plan.stages[name].outputs)
    numbers = json.loads((earlier_stages / "results.json").read_text())
    assert list(numbers) == ["sft_early", "grpo", "sft", "gain", "ablation"]
    assert numbers["gain"]["sampled_reward"]["mean"] == pytest.approx(2.0)  # from 1 to 3
    assert list(numbers["ablation"]) == ["none", "audio_muted"]
    assert numbers["ablation"]["none"]["category_accuracy"] == 1.0
    assert numbers["ablation"]["audio_muted"]["category_accuracy"] == 0.0
    more = json.loads((earlier_stages / "without_guards" / "results.json").read_text())
    assert more == numbers | {
        "grpo_without_guards": numbers["sft_early"],
        "gain_grpo_without_guards": more["gain_grpo_without_guards"],
    }
    assert more["gain_grpo_without_guards"]["sampled_reward"]["mean"] == 0.0
    page = (earlier_stages / "report.html").read_text()
    assert "early SFT" in page and "full SFT" in page and "without guards" not in page
    assert ("These numbers mean nothing." in page) == (file == "smoke.yaml")
    assert "GRPO without guards" in (earlier_stages / "without_guards" / "report.html").read_text()


def test_numbers_are_of_the_splits_that_are_asked_for(earlier_stages: Path) -> None:
    evaluations = [Run(name, earlier_stages / "eval" / name) for name in ("sft_early", "grpo")]
    of_all, of_null = (collect(evaluations, None, splits) for splits in (None, ["test_n"]))
    assert of_all["grpo"]["non_null_iou"] == pytest.approx(1.0)
    assert of_null["grpo"]["non_null_iou"] is None and of_null["grpo"]["greedy_iou"] == pytest.approx(1.0)


def test_folders_of_one_name_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="have one name"):
        collect([Run("one", tmp_path / "1" / "eval"), Run("two", tmp_path / "2" / "eval")], None, None)


@pytest.mark.parametrize("text", ["outputs/demo", "=outputs/demo", "GRPO="])
def test_a_run_without_name_or_folder_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="names no run: write NAME=FOLDER"):
        read_run(text)
