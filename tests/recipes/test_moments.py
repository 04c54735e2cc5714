"""Recipes of temporal grounding, init.yaml, sft.yaml, grpo.yaml and evaluate.yaml, one after another in a process."""

import json
from pathlib import Path

import pytest

from aurora_rl.scripts import evaluate, grpo, init_tiny, sft

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "synthetic" / "moments"


def test_a_model_is_made_trained_and_scored(
    tiny_benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(script: object, name: str, **options: object) -> Path:
        out = tmp_path / name
        values = {"config": RECIPES / f"{name}.yaml", "data_root": tiny_benchmark / "moments.jsonl", "output_dir": out}
        words = [word for key, value in {**values, **options}.items() for word in (f"--{key}", str(value))]
        monkeypatch.setattr("sys.argv", [f"{name}.py", *words])
        script.run()
        return out

    model = run(init_tiny, "init")
    model = run(sft, "sft", model=model, max_steps=2, per_device_train_batch_size=4, logging_steps=1)
    assert json.loads((model / "config.json").read_text()).get("segmenter") is None
    model = run(grpo, "grpo", model=model, max_steps=1, per_device_train_batch_size=8, max_completion_length=8)
    scores = run(evaluate, "evaluate", model=model, batch_size=8, max_completion_length=8)
    found = json.loads((scores / "scores.json").read_text())["overall"]
    assert {"iou", "recall_0.5", "readable", "chain_hear"} <= found.keys()
    assert (scores / "results.audio_muted.jsonl").is_file()
