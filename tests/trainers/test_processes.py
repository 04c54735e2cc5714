"""Several processes under the shipped accelerate configs: how a run is spread changes nothing of what it computes.

`accelerate launch` starts the recipes for three optimiser steps on rollouts that are known beforehand (parity_run.py).
What they leave is held against the same recipes in one process with the same global batch.

DDP and FSDP2 run on CPUs by `--use_cpu true`. DeepSpeed runs on CPUs only if accelerate is not told that there is one,
because `use_cpu` switches it off in silence.
"""

import contextlib
import dataclasses
import json
import math
import os
import random
import shlex
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from aurora_rl.data.curriculum import by_pass_rates, dead_share, rate_of, read_pass_rates
from aurora_rl.data.sample import AVSample
from aurora_rl.evaluation.records import read_results
from aurora_rl.models.heads.segmenters.sam import SamSegmenter
from aurora_rl.models.loading import load_model
from tests.warm_interpreter import warm_python

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(1500)]

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
#: The same rewards, and one that weighs nothing and runs a pass over other prompts in each process.
LISTENING = shlex.split(
    "--reward_funcs reward_fns.format:format_reward reward_fns.category:category_reward "
    "reward_fns.listening:listening_reward --reward_weights 1 1 0"
)
WHOLE = shlex.split("--per_device_train_batch_size 8")
#: The run of one process puts every prompt through the model G times, the others once.
PLAIN = shlex.split("--share_prompts false")
HALVES = shlex.split("--per_device_train_batch_size 4")
QUARTERS = shlex.split("--per_device_train_batch_size 2 --gradient_accumulation_steps 2")
#: Groups of four over processes of six rows and passes of three: one process reads a new clip in its second pass, and
#: the other does not.
THIRDS = shlex.split("--per_device_train_batch_size 3 --gradient_accumulation_steps 2")
#: Each step takes all 28 prompts, so that every batch is the first one of an epoch.
EPOCHS = shlex.split("--per_device_train_batch_size 14 --gradient_accumulation_steps 4")
LORA = shlex.split("--use_peft --lora_r 4 --lora_dropout 0 --gradient_checkpointing true")
#: A task without a head, on a model without one or with a mask head that must not be waited for. In half precision, as
#: a large model is trained.
WORDS = shlex.split(
    "--task tests/words_task.py:NameTheObject --reward_funcs tests/words_task.py:length_reward --reward_weights 1"
)
#: DDP then waits for all gradients, instead of looking for parameters that have none, as the audio tower has.
WAITING = shlex.split("--ddp_find_unused_parameters false --freeze towers")
HALF_PRECISION = shlex.split("--bf16 true --dtype bfloat16")
SAVE = shlex.split("--save_strategy steps --save_steps 2 --save_only_model false")
FAULT = shlex.split("--fault local_masks")
#: The second process cannot share prompts, and neither may then wait for the other's shards.
KERNEL = shlex.split("--fault kernel")
#: One process has dead groups, and both refill their batches.
REFILLED = shlex.split("--fault dead_groups --dynamic_sampling_rounds 3")
#: One process calls a tool, and the other does not.
CALLS = shlex.split("--environment_factory tests.trainers.calling:Peak --max_completion_length 240 --fault calls")
#: Jobs whose rows have the order of a curriculum; others are shuffled.
IN_ORDER = ("grpo", "grpo_resumed")
ORDER = shlex.split("--curriculum easy_to_hard --shuffle_dataset false --pass_rates")
#: Three rows for two processes, so that one of them has a row twice; completions of different lengths.
SHOWN = shlex.split("--max_steps 1 --eval_split val --eval_strategy steps --eval_steps 1 --sample_rows 3")
#: Recipes and their options under each config. `x_resumed` does step 3 of `x` once more, from its checkpoint.
JOBS: Mapping[str, Mapping[str, list[str]]] = {
    "cpu": {
        "sft": WHOLE,
        "grpo": WHOLE + PLAIN,
        "sft_lora": WHOLE + LORA,
        "grpo_lora": WHOLE + LORA + PLAIN,
        "grpo_calls": WHOLE + LORA + PLAIN + CALLS,
        "sft_distilled": WHOLE,
    },
    "multi_gpu": {
        "sft": QUARTERS + SAVE,
        "sft_distilled": QUARTERS,
        "grpo": QUARTERS + SAVE,
        "grpo_epochs": EPOCHS,
        "sft_resumed": QUARTERS,
        "grpo_resumed": QUARTERS,
        "sft_words": HALVES + WORDS[:2] + WAITING,
        "grpo_words": HALVES + WORDS + WAITING + REFILLED,
        "sft_fault": HALVES + FAULT,
        "grpo_fault": HALVES + FAULT,
    },
    "zero2": {
        "sft": QUARTERS,
        "grpo": QUARTERS,
        "sft_words": HALVES + LORA + HALF_PRECISION + WORDS[:2],
        "grpo_calls": HALVES + LORA + CALLS,
    },
    "zero3": {
        "sft": HALVES,
        "grpo": HALVES + LISTENING,
        "sft_distilled": HALVES,
        "sft_lora": HALVES + LORA + SAVE,
        "grpo_lora": HALVES + LORA + SAVE,
        "sft_lora_resumed": HALVES + LORA,
        "grpo_lora_resumed": HALVES + LORA,
        "sft_shown": HALVES + LORA + HALF_PRECISION + SHOWN,
        "grpo_words": THIRDS + LORA + HALF_PRECISION + WORDS,
    },
    "zero3_offload": {"sft": HALVES, "grpo": HALVES + KERNEL},
    "fsdp2": {
        "sft": HALVES,
        "grpo": HALVES + SAVE,
        "grpo_lora": HALVES + LORA,
        "grpo_resumed": HALVES,
        "sft_shown": HALVES + SHOWN,
    },
    "multi_node": {"sft": HALVES, "grpo": HALVES},
}
PARITY = [(config, job) for config in JOBS if config != "cpu" for job in JOBS[config] if job in JOBS["cpu"]]
WITHOUT_HEAD = [(config, job) for config in ("zero2", "zero3") for job in JOBS[config] if job.endswith("_words")]
SHOWING = [(config, job) for config in JOBS for job in JOBS[config] if job.endswith("_shown")]
RESUMED = [(config, job) for config in JOBS for job in JOBS[config] if job.endswith("_resumed")]

#: Weights move by 2e-3 in three steps; sums of the same numbers in another order differed by 5e-6 at most.
WEIGHT_TOLERANCE = 1e-5
LOG_TOLERANCE = 1e-4
COMPARED_LOGS = ("loss", "grad_norm", "mask_loss", "mask_bce", "mask_dice", "distillation", "reward")


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run left: weights, a line of logs for each step, and its folder."""

    weights: dict[str, torch.Tensor]
    logs: list[dict[str, Any]]
    folder: Path


Runs = Callable[[str], Mapping[str, Run]]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def commands(config: str) -> list[list[str]]:
    """`accelerate launch` as a user would type it, one command a machine."""
    launch = [warm_python(), "-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{config}.yaml"]
    if config == "cpu":
        return [launch]
    if config != "multi_node":
        return [[*launch, *LAUNCH, "--main_process_port", "0"]]
    address = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    return [[*launch, *LAUNCH, *address, "--machine_rank", rank] for rank in ("0", "1")]


def launch(config: str, script: list[str]) -> str:
    """Run a script under a config to its end; what its first machine said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"DS_ACCELERATOR": "cpu", "CXX": str(ROOT / "tests/quick_cxx")}
    with contextlib.ExitStack() as stack:
        machines = []
        for command in commands(config):
            log = stack.enter_context(tempfile.TemporaryFile("w+"))
            machine = subprocess.Popen([*command, *script], cwd=ROOT, env=environment, stdout=log, stderr=log)
            stack.callback(machine.kill)
            machines.append((machine, log))
        said = []
        for machine, log in machines:
            machine.wait(timeout=1200)
            log.seek(0)
            said.append(log.read())
            assert machine.returncode == 0, said[-1][-20000:]
    return said[0]


def device_options(config: str) -> list[str]:
    if config == "cpu":
        return ["--use_cpu", "true"]
    return ["--ddp_backend", "gloo", "--use_cpu", "false" if "DEEPSPEED" in SPREAD[config] else "true"]


def read_run(folder: Path) -> Run:
    (weights,) = folder.glob("*model.safetensors")
    logs = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return Run(load_file(weights), [line for line in logs if "loss" in line], folder)


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
def pass_rates(tiny_benchmark: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rate of its own for each row, in an order that is not the benchmark's."""
    path = tmp_path_factory.mktemp("rates") / "pass_rates.jsonl"
    records = [json.loads(line) for line in (tiny_benchmark / "chains.jsonl").read_text().splitlines()]
    passes = random.Random(0).sample(range(100, 200), len(records))
    pairs = zip(records, passes, strict=True)
    lines = [{"uid": each["uid"], "row": each["row"], "passes": count, "tries": 200} for each, count in pairs]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def runs(
    tiny_benchmark: Path,
    tiny_checkpoint: str,
    omni_checkpoint: str,
    chains: Path,
    pass_rates: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Runs:
    """All jobs of a config, by one launch the first time that it is asked for."""
    made: dict[str, dict[str, Run]] = {}
    common = ["--model", tiny_checkpoint, "--data_root", str(tiny_benchmark), *TRAINING]

    def options_of(config: str, job: str, folder: Path) -> list[str]:
        recipe = job.split("_")[0]
        options = ["--config", f"recipes/synthetic/{recipe}.yaml", "--output_dir", str(folder / job), *common]
        options += GRPO if recipe == "grpo" else ["--chains", str(chains)]
        options += [*ORDER, str(pass_rates)] if job in IN_ORDER else []
        if job == "sft_distilled":  # a live teacher, on DDP one file of its features that both processes fill
            options += ["--teacher", tiny_checkpoint]
            options += ["--teacher_features", str(folder / "features")] if config == "multi_gpu" else []
        if (config, job) in WITHOUT_HEAD:
            options += ["--model", omni_checkpoint]
        options += device_options(config)
        if job.endswith("_resumed"):
            options += ["--resume_from_checkpoint", str(folder / job.removesuffix("_resumed") / "checkpoint-2")]
        return [*options, *JOBS[config][job]]

    def run(config: str) -> Mapping[str, Run]:
        if config not in made:
            folder = tmp_path_factory.mktemp(config)
            jobs = [(job.split("_")[0], options_of(config, job, folder), free_port()) for job in JOBS[config]]
            (folder / "jobs.json").write_text(json.dumps(jobs))
            said = launch(config, ["tests/trainers/parity_run.py", str(folder / "jobs.json")])
            assert said.count(f"{SPREAD[config]}\n") == len(jobs)
            made[config] = {job: read_run(folder / job) for job in JOBS[config]}
        return made[config]

    return run


def largest_difference(run: Run, expected: Run) -> float:
    assert run.weights.keys() == expected.weights.keys()
    return max((run.weights[name] - weight).abs().max().item() for name, weight in expected.weights.items())


def assert_same_logs(run: Run, expected: Run) -> None:
    assert [line["step"] for line in run.logs] == [1, 2, 3]
    for line, other in zip(run.logs, expected.logs, strict=True):
        values, others = ({name: log[name] for name in COMPARED_LOGS if name in log} for log in (line, other))
        assert values == pytest.approx(others, rel=LOG_TOLERANCE)


@pytest.mark.parametrize(("config", "job"), PARITY)
def test_two_processes_take_the_steps_of_one(config: str, job: str, runs: Runs) -> None:
    run, expected = runs(config)[job], runs("cpu")[job]
    assert_same_logs(run, expected)
    assert largest_difference(run, expected) < WEIGHT_TOLERANCE


def test_the_teacher_is_heard_in_every_process(runs: Runs) -> None:
    distilled, plain = (runs("cpu")[job] for job in ("sft_distilled", "sft"))
    # The teacher is the student before its first step; what differs there is only the text before `[SEG]`.
    assert [line["distillation"] > 1e-3 for line in distilled.logs] == [True] * 3
    assert largest_difference(distilled, plain) > 10 * WEIGHT_TOLERANCE


def test_media_are_read_ahead_in_every_process_over_the_end_of_an_epoch(runs: Runs) -> None:
    """The replaying trainer of parity_run.py ends a run in which they are not."""
    assert [line["epoch"] for line in runs("multi_gpu")["grpo_epochs"].logs] == [1, 2, 3]


@pytest.mark.parametrize("job", ["sft", "grpo"])
def test_a_mask_loss_over_the_masks_of_one_process_would_be_seen(job: str, runs: Runs) -> None:
    broken, expected = runs("multi_gpu")[f"{job}_fault"], runs("cpu")[job]
    assert largest_difference(broken, expected) > 10 * WEIGHT_TOLERANCE
    with pytest.raises(AssertionError):
        assert_same_logs(broken, expected)


@pytest.mark.parametrize("config", [config for config, job in PARITY if job == "grpo"])
def test_the_reference_model_is_the_policy_before_its_first_step(config: str, runs: Runs) -> None:
    logs = runs(config)["grpo"].logs
    assert logs[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert logs[2]["kl"] == pytest.approx(runs("cpu")["grpo"].logs[2]["kl"], rel=1e-2)
    assert logs[2]["kl"] > 0.01


@pytest.mark.parametrize(("config", "job"), RESUMED)
def test_a_resumed_run_ends_where_the_unbroken_one_does(config: str, job: str, runs: Runs) -> None:
    resumed, unbroken = runs(config)[job], runs(config)[job.removesuffix("_resumed")]
    assert [line["loss"] for line in resumed.logs] == [line["loss"] for line in unbroken.logs]
    assert resumed.logs[2]["grad_norm"] == unbroken.logs[2]["grad_norm"]
    assert largest_difference(resumed, unbroken) == 0.0


def test_rows_are_trained_on_in_their_order_over_processes_and_a_resume(
    runs: Runs, pass_rates: Path, train_samples: list[AVSample]
) -> None:
    """A step of two prompts logs the mean of what their rates foretell, and no two rows have the same rate."""
    rows = by_pass_rates(train_samples, read_pass_rates(pass_rates), order="easy_to_hard")
    shares = [dead_share(rate_of(row), 4) for row in rows[:6]]
    expected = [(first + second) / 2 for first, second in zip(shares[::2], shares[1::2], strict=True)]
    assert [row.uid for row in rows] != [row.uid for row in train_samples] and len({*expected}) == 3
    for run in (runs("multi_gpu")["grpo"], runs("multi_gpu")["grpo_resumed"], runs("cpu")["grpo"]):
        assert [line["dead_groups/predicted"] for line in run.logs] == pytest.approx(
            expected, abs=1e-6
        )  # logged in float32


@pytest.mark.parametrize(("config", "job"), SHOWING)
def test_the_processes_show_samples_of_their_evaluation_together(config: str, job: str, runs: Runs) -> None:
    folder = runs(config)[job].folder
    results = read_results(folder / "samples" / "step-000001.jsonl")
    assert len({result.key for result in results}) == len(results) == 3
    assert {result.split for result in results} == {"val"}
    assert all(result.completion.pred_masks and result.completion.text for result in results)
    assert (folder / "samples" / "index.html").read_text().count('class="clip"') == 3


@pytest.mark.parametrize(("config", "job"), WITHOUT_HEAD)
def test_a_model_without_heads_is_trained_in_half_precision(config: str, job: str, runs: Runs) -> None:
    run = runs(config)[job]
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in run.logs)
    assert not [name for line in run.logs for name in line if "mask" in name or "iou" in name]
    assert {name.split(".")[-3] for name in run.weights if ".lora_B." in name} == {"q_proj", "v_proj"}
    assert all(weight.any() for name, weight in run.weights.items() if ".lora_B." in name)
    assert not [name for name in run.weights if "seg_head" in name]


@pytest.mark.parametrize("job", ["sft_words", "grpo_words"])
def test_processes_do_not_wait_for_a_head_that_the_task_has_not(job: str, runs: Runs, tiny_checkpoint: str) -> None:
    run, start = runs("multi_gpu")[job], load_model(tiny_checkpoint).model.state_dict()
    head = [name for name in run.weights if name.startswith("seg_head.")]
    assert head and all(torch.equal(run.weights[name], start[name]) for name in head)
    assert any(not torch.equal(weight, start[name]) for name, weight in run.weights.items())


def test_processes_refill_their_batches_in_as_many_rounds_as_the_one_with_most_dead_groups(runs: Runs) -> None:
    """A batch is one group on each: that of the second process is dead, and so is the first that comes for it."""
    names = ("dead_before", "dead_after", "rounds", "sampled_per_trained")
    costs = [[line[f"dynamic_sampling/{name}"] for name in names] for line in runs("multi_gpu")["grpo_words"].logs]
    assert costs == [[0.5, 0.0, 2.0, 3.0]] * 3


def test_one_process_may_call_tools_while_another_does_not(runs: Runs) -> None:
    """Processes of one more turn than others end in the same place, as `PARITY` shows; half of the rollouts call."""
    for config in ("cpu", "zero2"):
        run = runs(config)["grpo_calls"]
        assert [line["tools/rollouts_with_a_call"] for line in run.logs] == [0.5] * 3
        assert [line["tools/failure_frequency"] for line in run.logs] == [0.0] * 3
        assert all(line["tools/no_room"] == 0.0 and math.isfinite(line["loss"]) for line in run.logs)


def test_a_plain_model_gets_a_pretrained_sam_decoder_under_zero3(
    omni_checkpoint: str, sam_checkpoint: str, tiny_benchmark: Path, tmp_path: Path
) -> None:
    recipe = (ROOT / "recipes/synthetic/sft.yaml").read_text()
    segmenter = f"segmenter: {{type: sam, checkpoint: {sam_checkpoint}, image_size: 64}}"
    config = tmp_path / "sft.yaml"
    config.write_text(f"{recipe}\n{segmenter}\nembedding_cache: {tmp_path / 'embeddings'}\n")
    paths = ["--model", omni_checkpoint, "--data_root", str(tiny_benchmark), "--output_dir", str(tmp_path / "sft")]
    options = shlex.split("--learning_rate 0 --per_device_train_batch_size 3 --max_steps 2")
    job = ["--config", str(config), *TRAINING, *options, *paths, *device_options("zero3")]
    (tmp_path / "jobs.json").write_text(json.dumps([("sft", job, free_port())]))
    launch("zero3", ["tests/trainers/parity_run.py", str(tmp_path / "jobs.json")])
    assert all(0 < line["mask_bce"] < 5 for line in read_run(tmp_path / "sft").logs)
    trained = load_model(str(tmp_path / "sft")).model.seg_head.mask_decoder.state_dict()
    pretrained = SamSegmenter.from_checkpoint(sam_checkpoint, image_size=64).state_dict()
    assert trained.keys() == pretrained.keys()
    assert all(torch.equal(trained[name], pretrained[name]) for name in pretrained)
