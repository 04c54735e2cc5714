"""Recipes about sound alone, one after another in a process: the tiny ones, and the 7B ones but for `grpo_7b.yaml`.

test_contract.py takes the steps of that one, sharded and in half precision.
"""

import json
from pathlib import Path

import pytest

from aurora_rl.data.curriculum import read_pass_rates
from aurora_rl.scripts import evaluate, grpo, init_tiny, pass_rates, sft
from aurora_rl.synthetic.sounds import SoundsConfig, write_sounds

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SHORT = {"max_completion_length": 8, "use_cpu": True}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a script with a recipe, its data and folders replaced; returns its output."""
    write_sounds(tmp_path / "data", SoundsConfig(sft=12, train=4, test=3))

    def of(script: object, recipe: str, **options: object) -> Path:
        out = tmp_path / recipe.removesuffix(".yaml")
        key = "output" if "pass_rates" in recipe else "output_dir"
        values = {"config": RECIPES / recipe, "data_root": tmp_path / "data", key: out, **options}
        words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        monkeypatch.setattr("sys.argv", [f"{script.__name__}.py", *words])
        script.run()
        return out

    return of


def test_a_model_is_made_trained_asked_trained_in_order_and_scored(run, tmp_path: Path) -> None:
    model = run(init_tiny, "synthetic/audio_qa/init.yaml")
    model = run(sft, "synthetic/audio_qa/sft.yaml", model=model, max_steps=1, per_device_train_batch_size=4)
    rates = run(pass_rates, "synthetic/audio_qa/pass_rates.yaml", model=model, **SHORT)
    assert [rate.tries for rate in read_pass_rates(rates).values()] == [16] * 4
    short = {"per_device_train_batch_size": 8, "max_steps": 1, **SHORT}
    every_row = {"pass_rate_above": -1, "pass_rate_below": 2}
    model = run(grpo, "synthetic/audio_qa/grpo.yaml", model=model, pass_rates=rates, **short, **every_row)
    logs = json.loads((model / "trainer_state.json").read_text())["log_history"]
    assert (
        logs[0]["dead_groups/predicted"] == 1.0 == logs[0]["frac_reward_zero_std"]
    )  # an untrained model is never right
    scores = run(evaluate, "synthetic/audio_qa/evaluate.yaml", model=model, **SHORT)
    assert {"accuracy", "accuracy_mmau", "readable"} <= json.loads((scores / "scores.json").read_text())[
        "overall"
    ].keys()
    assert (scores / "results.audio_muted.jsonl").is_file()
    asked = {"model": model, "dtype": "float32", **SHORT}
    plain = {"bf16": False, "dataloader_num_workers": 0, "gradient_accumulation_steps": 1, "save_strategy": "no"}
    whole = {"model": model, "dtype": "float32", "use_cpu": True, "max_steps": 1, **plain}
    adapter = run(sft, "audio_qa/sft_7b.yaml", **whole)
    assert json.loads((adapter / "adapter_config.json").read_text())["clip_options"]["num_frames"] == 0
    rates = run(pass_rates, "audio_qa/pass_rates.yaml", max_rows=1, **asked)
    assert len(read_pass_rates(rates)) == 1
    scores = run(evaluate, "audio_qa/evaluate.yaml", benchmark="avqa", split="test", **asked)
    assert len((scores / "results.jsonl").read_text().splitlines()) == 3
