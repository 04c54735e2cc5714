"""Several processes under the shipped accelerate configs: how a run is spread changes nothing of what it computes.

Each case is a recipe started by `accelerate launch` for three optimiser steps on rollouts that are known beforehand
(parity_run.py), held against the same recipe in one process with the same global batch.

DDP and FSDP2 run on CPUs by `--use_cpu true`. DeepSpeed runs on CPUs only if accelerate is not told that there is one,
because `use_cpu` switches it off in silence.
"""

import contextlib
import dataclasses
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from aurora_rl.models.loading import load_model
from aurora_rl.models.segmenters.sam import SamSegmenter

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
#: What the recipes say of themselves under each config of accelerate_configs/.
SPREAD = {
    "cpu": "distributed: NO, processes: 1",
    "multi_gpu": "distributed: MULTI_CPU, processes: 2",
    "zero2": "distributed: DEEPSPEED, processes: 2, ZeRO stage: 2",
    "zero3": "distributed: DEEPSPEED, processes: 2, ZeRO stage: 3",
    "zero3_offload": "distributed: DEEPSPEED, processes: 2, ZeRO stage: 3, optimiser on: cpu, parameters on: cpu",
    "fsdp2": "distributed: FSDP, processes: 2, FSDP version: 2",
    "multi_node": "distributed: DEEPSPEED, processes: 2, ZeRO stage: 2",
}
LAUNCH = shlex.split("--num_processes 2 --mixed_precision no")
# Adam takes full steps along gradients that are 0 but for rounding (a bias before a normalisation), unless its epsilon
# is far above rounding. Clipping and a schedule are on: both must be those of the whole batch.
TRAINING = shlex.split(
    "--max_steps 3 --logging_steps 1 --learning_rate 1e-3 --lr_scheduler_type linear --warmup_steps 0 "
    "--adam_epsilon 1e-5 --max_grad_norm 1.0 --eval_strategy no --save_strategy no --seed 2 --bf16 false "
    "--dataloader_num_workers 0 --dataloader_persistent_workers false"
)
# Rewards of the text alone: masks are cut off at a probability of 0.5, where rounding tips pixels over.
GRPO = shlex.split(
    "--num_generations 4 --max_completion_length 64 --beta 0.1 --reward_weights 1 1 "
    "--reward_funcs reward_fns.format:format_reward reward_fns.category:category_reward"
)
LORA = shlex.split("--use_peft --lora_r 4 --lora_dropout 0 --gradient_checkpointing true")
SAVE = shlex.split("--save_strategy steps --save_steps 2 --save_only_model false")
WHOLE = shlex.split("--per_device_train_batch_size 8")
HALVES = shlex.split("--per_device_train_batch_size 4")
QUARTERS = shlex.split("--per_device_train_batch_size 2 --gradient_accumulation_steps 2")
#: Weights move by 2e-3 in three steps; two sums of the same numbers in another order differed by 2e-6 at most.
WEIGHT_TOLERANCE = 1e-5
LOG_TOLERANCE = 1e-4
COMPARED_LOGS = ("loss", "grad_norm", "mask_loss", "mask_bce", "mask_dice", "reward", "num_tokens")


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run left: weights, and a line of logs for each step."""

    folder: Path
    weights: dict[str, torch.Tensor]
    logs: list[dict[str, Any]]


def commands(config: str, script: list[str]) -> list[list[str]]:
    """What a user would type, one command a machine."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{config}.yaml"]
    if config == "cpu":
        return [[*launch, *script]]
    if config != "multi_node":
        return [[*launch, *LAUNCH, "--main_process_port", "0", *script]]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    address = ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
    return [[*launch, *LAUNCH, *address, "--machine_rank", rank, *script] for rank in ("0", "1")]


def launch(config: str, script: list[str], output_dir: Path) -> None:
    """Run a script under a config to its end, and see that it was spread as the config says."""
    script = [*script, "--output_dir", str(output_dir), *([] if config == "cpu" else ["--ddp_backend", "gloo"])]
    script += ["--use_cpu", "false" if "DEEPSPEED" in SPREAD[config] else "true"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["DS_ACCELERATOR"] = "cpu"
    with contextlib.ExitStack() as stack:
        machines = []
        for command in commands(config, script):
            log = stack.enter_context(tempfile.TemporaryFile("w+"))
            machine = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=log, stderr=log)
            stack.callback(machine.kill)
            machines.append((machine, log))
        for machine, log in machines:
            returncode = machine.wait(timeout=600)
            log.seek(0)
            assert returncode == 0, log.read()[-20000:]
        machines[0][1].seek(0)
        assert f"{SPREAD[config]}\n" in machines[0][1].read()


def read_run(folder: Path) -> Run:
    (weights,) = folder.glob("*model.safetensors")
    logs = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return Run(folder, load_file(weights), [line for line in logs if "loss" in line])


@pytest.fixture(scope="module")
def chains(tiny_benchmark: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gold chains, every third of them without `[SEG]`: processes then differ in how many masks they teach."""
    records = [json.loads(line) for line in (tiny_benchmark / "chains.jsonl").read_text().splitlines()]
    for record in records[::3]:
        record["answer"] = record["answer"].replace("[SEG]", "hidden")
    path = tmp_path_factory.mktemp("chains") / "chains.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


@pytest.fixture(scope="module")
def train(
    tiny_benchmark: Path, tiny_checkpoint: str, chains: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Run]:
    """Train with a recipe under a config."""

    def run(config: str, recipe: str, *options: str) -> Run:
        folder = tmp_path_factory.mktemp("runs") / config
        script = ["tests/trainers/parity_run.py", recipe, "--config", f"recipes/synthetic/{recipe}.yaml"]
        script += ["--model", tiny_checkpoint, "--data_root", str(tiny_benchmark), *TRAINING]
        script += GRPO if recipe == "grpo" else ["--chains", str(chains)]
        launch(config, [*script, *options], folder)
        return read_run(folder)

    return run


@pytest.fixture(scope="module")
def one_process(train: Callable[..., Run]) -> Callable[..., Run]:
    """The run in one process that the others are held against; each is made once."""
    made: dict[tuple[str, ...], Run] = {}

    def run(recipe: str, *options: str) -> Run:
        key = (recipe, *options)
        if key not in made:
            made[key] = train("cpu", recipe, *WHOLE, *options)
        return made[key]

    return run


def largest_difference(run: Run, expected: Run) -> float:
    assert run.weights.keys() == expected.weights.keys()
    return max((run.weights[name] - weight).abs().max().item() for name, weight in expected.weights.items())


def assert_same(run: Run, expected: Run) -> None:
    assert [line["step"] for line in run.logs] == [1, 2, 3]
    for line, other in zip(run.logs, expected.logs, strict=True):
        for name in COMPARED_LOGS:
            assert line.get(name) == pytest.approx(other.get(name), rel=LOG_TOLERANCE), (line["step"], name)
    assert largest_difference(run, expected) < WEIGHT_TOLERANCE


@pytest.mark.parametrize(
    ("config", "share"),
    [("multi_gpu", QUARTERS), ("zero2", QUARTERS), ("zero3", HALVES), ("fsdp2", HALVES), ("multi_node", HALVES)],
    ids=["multi_gpu", "zero2", "zero3", "fsdp2", "multi_node"],
)
def test_sft_in_two_processes_takes_the_steps_of_one(config, share, train, one_process):
    assert_same(train(config, "sft", *share), one_process("sft"))


@pytest.mark.parametrize(
    ("config", "share"),
    [("multi_gpu", QUARTERS), ("zero2", QUARTERS), ("zero3", HALVES), ("zero3_offload", HALVES), ("fsdp2", HALVES)],
    ids=["multi_gpu", "zero2", "zero3", "zero3_offload", "fsdp2"],
)
def test_grpo_with_a_reference_model_in_two_processes_takes_the_steps_of_one(config, share, train, one_process):
    run = train(config, "grpo", *share)
    assert_same(run, one_process("grpo"))
    assert run.logs[0]["kl"] == pytest.approx(0.0, abs=1e-5)  # the reference is the policy before its first step
    assert run.logs[2]["kl"] > 1e-3


@pytest.mark.parametrize("recipe", ["sft", "grpo"])
def test_lora_under_zero3_takes_the_steps_of_one_process_and_resumes_exactly(recipe, train, one_process):
    """Steps 1 and 2, a checkpoint, step 3; then step 3 once more from the checkpoint, in new processes."""
    unbroken = train("zero3", recipe, *HALVES, *LORA, *SAVE)
    assert_same(unbroken, one_process(recipe, *LORA))
    resumed = train("zero3", recipe, *HALVES, *LORA, "--resume_from_checkpoint", str(unbroken.folder / "checkpoint-2"))
    assert [line["loss"] for line in resumed.logs] == [line["loss"] for line in unbroken.logs]
    assert largest_difference(resumed, unbroken) == 0.0
    trained = load_file(unbroken.folder / "checkpoint-2" / "adapter_model.safetensors")
    assert any(not torch.equal(trained[name], weight) for name, weight in unbroken.weights.items())


@pytest.mark.parametrize("recipe", ["sft", "grpo"])
def test_a_mask_loss_over_the_masks_of_one_process_would_be_seen(recipe, train, one_process):
    broken = train("multi_gpu", recipe, *HALVES, "--fault", "local_masks")
    assert largest_difference(broken, one_process(recipe)) > 10 * WEIGHT_TOLERANCE
    with pytest.raises(AssertionError, match="loss"):
        assert_same(broken, one_process(recipe))


def test_a_plain_model_gets_a_pretrained_sam_decoder_under_zero3(
    omni_checkpoint, sam_checkpoint, tiny_benchmark, tmp_path
):
    recipe = (ROOT / "recipes/synthetic/sft.yaml").read_text()
    segmenter = f"segmenter: {{type: sam, checkpoint: {sam_checkpoint}, image_size: 64}}"
    config = tmp_path / "sft.yaml"
    config.write_text(f"{recipe}\n{segmenter}\nembedding_cache: {tmp_path / 'embeddings'}\n")
    options = ["--learning_rate", "0", "--per_device_train_batch_size", "2", "--max_steps", "1"]
    script = ["recipes/sft.py", "--config", str(config), *TRAINING, *options]
    launch("zero3", [*script, "--model", omni_checkpoint, "--data_root", str(tiny_benchmark)], tmp_path / "sft")
    assert all(0 < line["mask_bce"] < 5 for line in read_run(tmp_path / "sft").logs)
    trained = load_model(str(tmp_path / "sft")).model.seg_head.mask_decoder.state_dict()
    pretrained = SamSegmenter.from_checkpoint(sam_checkpoint, image_size=64).state_dict()
    assert trained.keys() == pretrained.keys()
    assert all(torch.equal(trained[name], pretrained[name]) for name in pretrained)
