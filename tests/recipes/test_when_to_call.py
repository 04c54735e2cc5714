"""The recipe that learns when to call a tool: its stages one after another in a process, cut short."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from aurora_rl.evaluation.records import read_results
from aurora_rl.scripts import evaluate, grpo, init_tiny, make_window_questions, sft
from recipes import when_to_call

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
    assert {row["reference_type"] for row in rows if row.get("calls")} == {"loudness", "colour"}
    init, start, policy = tmp_path / "init", tmp_path / "sft", tmp_path / "grpo"
    run(init_tiny, "init.yaml", data_root=data, output_dir=init)
    run(sft, "sft.yaml", data_root=data, model=init, output_dir=start, max_steps=1, per_device_train_batch_size=4)
    short = {"max_steps": 1, "per_device_train_batch_size": 8, "max_completion_length": 60}
    run(grpo, "grpo.yaml", data_root=data, model=start, output_dir=policy, **short)
    state = json.loads((policy / "trainer_state.json").read_text())
    assert "tools/rollouts_with_a_call" in state["log_history"][0]
    for name, model in (("sft", start), ("grpo", policy)):
        for tool_calls in ("chosen", "never", "always"):
            seed = "-1" if name == "grpo" else ""
            out = tmp_path / f"evaluate_{name}-{tool_calls}{seed}"
            options = {"tool_calls": tool_calls, "output_dir": out, "max_completion_length": 8}
            run(evaluate, "evaluate.yaml", data_root=data, model=model, **options)
    when_to_call.main(["--stages", str(tmp_path), "--output_dir", str(tmp_path / "table")])
    result = json.loads((tmp_path / "table" / "result.json").read_text())
    assert result["size"] == "1 seeds, 4 held-out questions" and len(result["figures"]) == 4
    assert "| GRPO, never calling | 0.000 | 0.000 |" in (tmp_path / "table" / "table.md").read_text()
    first = read_results(tmp_path / "evaluate_sft-never")[0].completion
    assert first.scores["called"] == 0.0 and "called" in json.loads((out / "scores.json").read_text())["meanings"]


def test_the_stages_end_with_the_table() -> None:
    stages = yaml.safe_load((RECIPE / "stages.yaml").read_text())["stages"]
    assert list(stages)[-1] == "table" and stages["table"]["outputs"] == ["table.md", "result.json"]
