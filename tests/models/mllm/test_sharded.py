"""Families under ZeRO-3 in two processes: clips of which one process has no sound stall nothing and change no step."""

import json
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from aurora_rl.first_clip import CLIPS
from aurora_rl.models.loading import load_model
from aurora_rl.models.mllm import MLLM_FAMILIES, MLLMFamily
from tests.trainers.test_processes import (
    LOG_TOLERANCE,
    LORA,
    SPREAD,
    TRAINING,
    WEIGHT_TOLERANCE,
    Run,
    device_options,
    free_port,
    largest_difference,
    launch,
    read_run,
)

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(900)]

FAMILIES = ("qwen2_5_omni", "qwen3_omni_moe", "gemma4")
RECIPES = ("sft", "grpo")
SEGMENTER = {"type": "dot", "image_size": 64, "width": 8}
#: Rows follow one another, and the processes take them in turns: the first one's have no sound.
STEPS = [*TRAINING, *LORA, *shlex.split("--max_steps 2 --freeze towers")]
OPTIONS = {
    "sft": {"train_sampling_strategy": "sequential"},
    "grpo": {
        "shuffle_dataset": False,
        "num_generations": 4,
        "max_completion_length": 64,
        "beta": 0.1,
        "reward_funcs": ["reward_fns.format:format_reward", "reward_fns.category:category_reward"],
        "reward_weights": [1.0, 1.0],
    },
}
#: Keys and values that Gemma's layers share have no gradient in checkpoints as adapters have them under ZeRO-3.
PLAIN = {"gemma4": ["--gradient_checkpointing", "false"]}
#: Rows of a forward pass: two clips a step, or two groups.
ROWS = {"sft": 1, "grpo": 4}
#: One process takes both after one another, so that no row is padded as it is not in two.
ACCUMULATED = {"cpu": ["--gradient_accumulation_steps", "2"], "zero3": []}
COMPARED_LOGS = ("loss", "grad_norm", "mask_loss", "mask_bce", "reward")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of four frames, every second one with a sound."""
    folder = shutil.copytree(CLIPS, tmp_path_factory.mktemp("clips") / "clips")
    path = folder / "clips.jsonl"
    rows = [{**json.loads(line), "split": "train"} for line in path.read_text().splitlines()]
    for row in rows[::2]:
        del row["audio"]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def checkpoints(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """A tiny model of each family."""
    texts = [json.loads(line)["chain"] for line in manifest.read_text().splitlines()]
    folders = {}
    for name in FAMILIES:
        family: MLLMFamily = MLLM_FAMILIES[name]()
        model, processor = family.build_tiny(texts, segmenter=SEGMENTER)
        folders[name] = str(tmp_path_factory.mktemp(name))
        model.save_pretrained(folders[name])
        processor.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="module")
def runs(
    manifest: Path, checkpoints: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Mapping[str, Run]]:
    """All jobs of a config by one launch; a job is `family recipe`."""
    made: dict[str, Mapping[str, Run]] = {}

    def run(config: str) -> Mapping[str, Run]:
        if config in made:
            return made[config]
        folder, jobs = tmp_path_factory.mktemp(config), {}
        for name in FAMILIES:
            for recipe in RECIPES:
                data = {"benchmark": "clips", "data_root": str(manifest), "instruction": "{reference}"}
                fields = {"model": checkpoints[name], "num_frames": 4, "fps": 2.0, "report_to": "none", **data}
                path = folder / f"{name}_{recipe}.yaml"
                path.write_text(json.dumps({**fields, **OPTIONS[recipe]}))  # which is YAML
                rows = ["--per_device_train_batch_size", str(ROWS[recipe]), *ACCUMULATED[config]]
                out = ["--output_dir", str(folder / f"{name} {recipe}")]
                options = [*STEPS, *rows, *PLAIN.get(name, ()), *device_options(config)]
                jobs[f"{name} {recipe}"] = [*out, *options, "--config", str(path)]
        listed = [(job.split()[1], options, free_port()) for job, options in jobs.items()]
        (folder / "jobs.json").write_text(json.dumps(listed))
        said = launch(config, ["tests/trainers/parity_run.py", str(folder / "jobs.json")])
        assert said.count(f"{SPREAD[config]}\n") == len(jobs)
        made[config] = {job: read_run(folder / job) for job in jobs}
        return made[config]

    return run


@pytest.mark.parametrize("name", FAMILIES)
def test_two_processes_of_which_one_hears_nothing_take_the_steps_of_one(
    name: str, runs: Callable[[str], Mapping[str, Run]], record_property: Callable[[str, object], None]
) -> None:
    differences = []
    for recipe in RECIPES:
        run, expected = (runs(config)[f"{name} {recipe}"] for config in ("zero3", "cpu"))
        assert [line["step"] for line in run.logs] == [1, 2]
        for line, other in zip(run.logs, expected.logs, strict=True):
            found, wanted = ({key: log[key] for key in COMPARED_LOGS if key in log} for log in (line, other))
            assert found == pytest.approx(wanted, rel=LOG_TOLERANCE)
        differences.append(largest_difference(run, expected))
        loaded = load_model(str(run.folder)).model
        assert any(weight.any() for key, weight in loaded.named_parameters() if ".lora_B." in key)
    assert max(differences) < WEIGHT_TOLERANCE
    record_property("cell", f"{name}|ZeRO-3|{max(differences):.0e}")


def test_control_the_runs_of_other_clips_differ(runs: Callable[[str], Mapping[str, Run]]) -> None:
    sft, grpo = (runs("cpu")[f"{FAMILIES[0]} {recipe}"] for recipe in RECIPES)
    assert max((sft.weights[key] - grpo.weights[key]).abs().max() for key in sft.weights) > 10 * WEIGHT_TOLERANCE
    assert torch.isfinite(torch.tensor([line["loss"] for line in sft.logs])).all()
