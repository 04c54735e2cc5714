"""The recipes as a user starts them, and their YAML files as their dataclasses read them."""

import importlib
import json
import os
import re
import subprocess
import typing
from pathlib import Path
from typing import Any

import pandas
import pytest
import yaml
from safetensors import safe_open
from trl import TrlParser

from aurora_rl.models.loading import load_model
from tests.warm_interpreter import warm_python

ROOT = Path(__file__).parents[2]
#: Files of stages are of another kind: test_run_stages.py.
CONFIGS = sorted(
    path for path in (ROOT / "recipes").rglob("*.yaml") if "stages" not in yaml.safe_load(path.read_text())
)
#: What recipes read of a folder `data`.
DATA = ("moments.jsonl", "ref_avs", "avsbench_s4", "avqa_r1", "avqa", "audio_qa", "mmau")
#: Scripts that their configs are not named after.
SCRIPTS = {
    "init": "recipes/init_tiny",
    "teacher": "recipes/sft",
    "reflection": "recipes/sft",
    "mistakes": "data_prep/collect_mistakes",
    "pass": "data_prep/pass_rates",
    "table": "data_prep/tool_table",
}


def script_of(config: Path) -> str:
    """`recipes/sft` for sft_7b.yaml and for qwen3_vl_8b_sft.yaml."""
    if config.parent.name == "agents":
        return "recipes/agents"
    words = config.stem.split("_")
    name = words[-1] if words[-1] in ("sft", "grpo") else words[0]
    return SCRIPTS.get(name, f"recipes/{name}")


def parse(script: str, *args: str) -> dict[str, Any]:
    """The script's arguments by the names that its `main` has for them."""
    name = Path(script).name
    module = "recipes.grpo_by_hand" if name == "grpo_by_hand" else f"aurora_rl.scripts.{name}"
    types = typing.get_type_hints(importlib.import_module(module).main)
    types.pop("return")
    # bf16 asks for a GPU unless the CPU is asked for.
    cpu = [] if script == "recipes/init_tiny" else ["--use_cpu", "true"]
    return dict(zip(types, TrlParser(types.values()).parse_args_and_config([*args, *cpu]), strict=True))


def launch(recipe: str, config: str, **options: Any) -> str:
    """Run a recipe by `accelerate launch` and return what it printed."""
    command = [warm_python(), "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", "accelerate_configs/cpu.yaml", f"recipes/{recipe}.py", "--config", config]
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def sft_folder(tiny_benchmark: Path, tiny_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two steps of recipes/sft.py leave."""
    folder = tmp_path_factory.mktemp("runs") / "sft"
    options = {"model": tiny_checkpoint, "data_root": tiny_benchmark, "output_dir": folder}
    launch(
        "sft",
        "recipes/synthetic/sft.yaml",
        **options,
        max_steps=2,
        per_device_train_batch_size=4,
        warmup_steps=1,
        logging_steps=1,
        eval_steps=2,
        save_steps=2,
        max_eval_samples=2,
    )
    return folder


def test_sft_trains_evaluates_and_leaves_a_model(sft_folder: Path, tiny_checkpoint: str) -> None:
    state = json.loads((sft_folder / "checkpoint-2" / "trainer_state.json").read_text())
    logged = {name for log in state["log_history"] for name in log}
    assert {"loss", "mask_bce", "mask_dice", "eval_loss", "eval_teacher_forced_iou"} <= logged
    before, after = load_model(tiny_checkpoint).model, load_model(str(sft_folder)).model
    name = "seg_head.projector.0.weight"
    assert not after.get_parameter(name).equal(before.get_parameter(name))


def test_grpo_goes_on_from_what_sft_left(sft_folder: Path, tiny_benchmark: Path) -> None:
    folder = sft_folder.with_name("grpo")
    options = {"model": sft_folder, "data_root": tiny_benchmark, "output_dir": folder}
    launch(
        "grpo",
        "recipes/synthetic/grpo.yaml",
        **options,
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=8,
        eval_strategy="no",
    )
    table = pandas.read_parquet(folder / "completions" / "completions_00001.parquet")
    assert len(table) == 4
    assert {"format_reward", "mask_iou_reward", "reasoning_consistency_reward", "mask_iou"} <= set(table.columns)
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        assert "seg_head.projector.0.weight" in weights.keys()  # noqa: SIM118 (a file, not a dictionary)
    assert load_model(str(folder)).model.config.segmenter["type"] == "dot"


# tests/agents/test_agents_command.py runs the agents' own.
@pytest.mark.parametrize(
    "config",
    [config for config in CONFIGS if config.parent.name != "agents"],
    ids=lambda config: f"{config.parent.name}/{config.stem}",
)
def test_every_config_is_read_by_its_recipe(config: Path) -> None:
    arguments = parse(script_of(config), "--config", str(config))
    assert arguments["data_args"].data_root.endswith(("data", "table", *(f"data/{name}" for name in DATA)))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.parent.name}/{config.stem}")
def test_every_config_opens_with_the_command_that_runs_it(config: Path) -> None:
    command = config.read_text().splitlines()[0]
    assert command.endswith(f"{script_of(config)}.py --config {config.relative_to(ROOT)}")
    for path in re.findall(r"\S+\.(?:py|yaml)", command):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize(
    "script", ["recipes/sft", "recipes/grpo", "recipes/grpo_by_hand", "recipes/evaluate", "recipes/init_tiny"]
)
def test_an_unknown_key_is_an_error(script: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("data_root: data\nmodel: m\noutput_dir: out\nlerning_rate: 1.0e-5\n")
    with pytest.raises(ValueError, match="lerning_rate"):
        parse(script, "--config", str(config))


def test_a_value_of_the_wrong_type_is_an_error(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("data_root: data\nmodel: m\noutput_dir: out\n")
    with pytest.raises(SystemExit):
        parse("recipes/grpo", "--config", str(config), "--num_generations", "many")


def test_the_command_line_overrides_the_config() -> None:
    arguments = parse(
        "recipes/grpo", "--config", "recipes/synthetic/grpo.yaml", "--num_generations", "4", "--beta", "0.1"
    )
    assert arguments["training_args"].num_generations == 4
    assert arguments["training_args"].beta == 0.1
    assert arguments["training_args"].mask_loss_on == "correct_only"
    assert arguments["reward_args"].reward_funcs[0] == "reward_fns.format:format_reward"
