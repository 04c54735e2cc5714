"""Recipes of choosing tools, one after another in a process: those that stages.yaml runs, then table_7b and grpo_7b."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from aurora_rl.evaluation.records import write_results
from aurora_rl.scripts import evaluate, grpo, init_tiny, make_tool_questions, sft, tool_table
from recipes import tool_choices
from tests.row_results import replied

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
#: init.yaml, sft.yaml, grpo.yaml and evaluate.yaml; stages.yaml runs grpo.yaml with the options EXACT as well.
SYNTHETIC = RECIPES / "synthetic" / "tools"
EXACT = {"enumerate_answers": "true", "entropy_coef": 0.03}
ON_A_CPU = {"dtype": "float32", "bf16": "false", "gradient_checkpointing": "false", "use_cpu": "true"}


def test_a_table_is_made_learned_from_and_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(script: ModuleType, path: Path, **options: object) -> None:
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        monkeypatch.setattr("sys.argv", [path.name, "--config", str(path), *words])
        script.run()

    data, model, out = tmp_path / "data", tmp_path / "init", tmp_path / "evaluate_grpo-1"
    make_tool_questions.main(["--output_dir", str(data), "--train", "8", "--test", "4"])
    table = {"data_root": data / "table"}
    run(init_tiny, SYNTHETIC / "init.yaml", **table, output_dir=model)
    taught, policy = tmp_path / "sft", tmp_path / "grpo"
    run(sft, SYNTHETIC / "sft.yaml", **table, model=model, output_dir=taught, max_steps=1)
    short = {"max_steps": 1, "per_device_train_batch_size": 8}
    run(grpo, SYNTHETIC / "grpo.yaml", **table, model=taught, output_dir=policy, **short)
    run(grpo, SYNTHETIC / "grpo.yaml", **table, model=policy, output_dir=tmp_path / "exact", **short, **EXACT)
    run(evaluate, SYNTHETIC / "evaluate.yaml", **table, model=policy, output_dir=out)
    tool_choices.main(["--stages", str(tmp_path), "--output_dir", str(tmp_path / "table")])
    result = json.loads((tmp_path / "table" / "result.json").read_text())
    accuracies = {name: found["mean"] for name, found in result["numbers"]["accuracy"].items()}
    assert accuracies["no tool"] == 0.25 and accuracies["all tools"] == 0.0
    assert accuracies["best fixed set"] == 0.5 and accuracies["best of each question"] == 0.75
    assert "| best of each question | 0.750 |" in (tmp_path / "table" / "table.md").read_text()

    of_model = tmp_path / "of_model" / "table.jsonl"
    options = {"data_root": data, "model": model, "output": of_model, "max_completion_length": 4}
    asked = {"dtype": "float32", "use_cpu": "true", "max_rows": 1}
    run(tool_table, RECIPES / "audio_tools" / "table_7b.yaml", **options, **asked)
    lines = [json.loads(line) for line in of_model.read_text().splitlines()]
    assert [line["tools"] for line in lines][:6] == [[], [0], [1], [2], [3], [0, 1]] and len(lines) == 16
    assert lines[0]["evidence"] == "" and lines[1]["evidence"].startswith("tempo: ")
    assert all(line["readable"] or not line["right"] for line in lines)
    part, whole = of_model.with_name("table.jsonl.parts") / "00000.jsonl", of_model.read_bytes()
    part.write_bytes(part.read_bytes()[: part.stat().st_size * 2 // 5])  # what a kill leaves
    of_model.unlink()
    run(tool_table, RECIPES / "audio_tools" / "table_7b.yaml", **options, **asked)
    assert of_model.read_bytes() == whole and len(part.read_text().splitlines()) == 16
    seven = {"data_root": of_model.parent, "model": taught, "output_dir": tmp_path / "7b", **ON_A_CPU}
    run(grpo, RECIPES / "audio_tools" / "grpo_7b.yaml", **seven, max_steps=1, gradient_accumulation_steps=1)
    assert (tmp_path / "7b" / "adapter_config.json").is_file()


def test_the_stages_end_with_the_table() -> None:
    stages = yaml.safe_load((SYNTHETIC / "stages.yaml").read_text())["stages"]
    assert list(stages)[-1] == "table" and stages["table"]["outputs"] == ["table.md", "result.json"]


def test_an_evaluation_of_other_questions_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tool_questions.main(["--output_dir", str(tmp_path / "data"), "--train", "4", "--test", "4"])
    write_results(tmp_path / "evaluate_grpo" / "results.jsonl", [replied(99, is_right=True)])
    with pytest.raises(SystemExit):
        tool_choices.main(["--stages", str(tmp_path), "--output_dir", str(tmp_path / "table")])
    assert "has the row 'uid99#99', which split 'test' of" in capsys.readouterr().err
