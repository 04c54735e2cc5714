"""The recipe that learns when to call a tool: its stages one after another in a process, cut short."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from aurora_rl.evaluation.records import CompletionScore, read_results, write_results
from aurora_rl.scripts import evaluate, grpo, init_tiny, make_window_questions, sft
from recipes import when_to_call
from tests.row_results import row

#: init.yaml, sft.yaml, grpo.yaml and evaluate.yaml, which stages.yaml runs.
RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "synthetic" / "calls"


def test_rows_with_calls_are_taught_rolled_out_and_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(script: ModuleType, name: str, **options: object) -> None:
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        monkeypatch.setattr("sys.argv", [name, "--config", str(RECIPE / name), *words])
        script.run()

    data = tmp_path / "data"
    make_window_questions.main(["--output_dir", str(data), "--sft", "8", "--train", "4", "--test", "4"])
    rows = [json.loads(line) for line in (data / "manifest.jsonl").read_text().splitlines()]
    assert any(row.get("calls") for row in rows)
    init, start, policy = tmp_path / "init", tmp_path / "sft", tmp_path / "grpo"
    run(init_tiny, "init.yaml", data_root=data, output_dir=init)
    run(sft, "sft.yaml", data_root=data, model=init, output_dir=start, max_steps=1, per_device_train_batch_size=4)
    short = {"max_steps": 1, "per_device_train_batch_size": 8, "max_completion_length": 60}
    run(grpo, "grpo.yaml", data_root=data, model=start, output_dir=policy, **short)
    state = json.loads((policy / "trainer_state.json").read_text())
    assert "tools/rollouts_with_a_call" in state["log_history"][0]
    for tool_calls in ("chosen", "never", "always"):
        out = tmp_path / f"evaluate_grpo-{tool_calls}-1"
        options = {"tool_calls": tool_calls, "output_dir": out, "max_completion_length": 8}
        run(evaluate, "evaluate.yaml", data_root=data, model=policy, **options)
        shutil.copytree(out, tmp_path / f"evaluate_sft-{tool_calls}")
    when_to_call.main(["--stages", str(tmp_path), "--output_dir", str(tmp_path / "table")])
    result = json.loads((tmp_path / "table" / "result.json").read_text())
    assert result["size"] == "1 seeds, 4 held-out questions" and len(result["figures"]) == 4
    assert "| GRPO, never calling | 0.000 | 0.000 |" in (tmp_path / "table" / "table.md").read_text()
    first = read_results(tmp_path / "evaluate_sft-never")[0].completion
    assert first.scores["called"] == 0.0 and "called" in json.loads((out / "scores.json").read_text())["meanings"]


def test_the_stages_end_with_the_table() -> None:
    stages = yaml.safe_load((RECIPE / "stages.yaml").read_text())["stages"]
    assert list(stages)[-1] == "table" and stages["table"]["outputs"] == ["table.md", "result.json"]


def test_evaluations_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = CompletionScore(text="", value="quiet", is_right=True, scores={"called": 1.0})
    rows = [row(number, reference_type=kind, greedy=said) for number, kind in enumerate(("loudness", "colour"))]
    seeds = {"chosen": (1, 2), "never": (1, 2), "always": (1,)}
    for tool_calls, of in seeds.items():
        for name in (f"sft-{tool_calls}", *(f"grpo-{tool_calls}-{seed}" for seed in of)):
            write_results(tmp_path / f"evaluate_{name}" / "results.jsonl", rows)
    words = ["--stages", str(tmp_path), "--output_dir", str(tmp_path / "table")]
    for more, told in (
        ([], "the seeds of the evaluations differ (chosen: ['1', '2']"),
        (["--needs", "pitch"], "--needs"),
    ):
        with pytest.raises(SystemExit):
            when_to_call.main([*words, *more])
        assert told in capsys.readouterr().err
