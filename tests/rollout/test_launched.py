"""Launched runs with vLLM: two processes under ZeRO-3 with LoRA, an engine each, and the synthetic recipe as it is."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = "-m accelerate.commands.launch --config_file accelerate_configs/"
TWO_PROCESSES = "zero3.yaml --num_processes 2 --mixed_precision no --main_process_port 0"
#: Its engines get the weights four times, and then no more. A random model earns no other reward than that of letters.
RUN = (
    "tests/rollout/stale_engine_grpo.py 4 --config recipes/synthetic/grpo.yaml --seed 1 --max_steps 6 "
    "--reward_funcs tests/trainers/faulty_grpo.py:letters_reward --reward_weights 1 --logging_steps 1 "
    "--eval_strategy no --learning_rate 1e-2 --warmup_steps 0 --per_device_train_batch_size 4 "
    "--num_generations 4 --use_peft true --max_completion_length 12 --gradient_checkpointing true --use_cpu false "
    "--ddp_backend gloo --bf16 false --use_vllm true --vllm_mode colocate --vllm_max_model_length 512"
)


#: The share of memory that the recipe's engine takes otherwise would be of the whole machine's.
ENGINE = ("--vllm_engine_kwargs", '{"kv_cache_memory_bytes": 64000000}')


def launch(*arguments: str, config: str = TWO_PROCESSES) -> str:
    """Launch processes; what they print."""
    command = [sys.executable, *shlex.split(LAUNCH + config), *arguments]
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
        # Memory that is freed goes back at once, so that the peak is what is really in use.
        "MALLOC_MMAP_THRESHOLD_": "262144",
    }
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-20000:]
    return result.stdout + result.stderr


def steps_of(folder: Path) -> list[dict[str, float]]:
    return [line for line in json.loads((folder / "trainer_state.json").read_text())["log_history"] if "loss" in line]


def test_a_weight_sync_gathers_one_layer_at_a_time():
    """41 million weights: a layer is far from the whole, and far above what a process holds besides."""
    printed = launch("tests/rollout/gather_memory.py", "512", "12")
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert len(lines) == 2
    for line in lines:
        assert line["ours"] < 0.15 * line["whole"]
        assert line["trls"] > 0.9 * line["whole"]  # control: the way of TRL, which gathers all at once


@pytest.mark.vllm
def test_two_ranks_with_two_engines_follow_the_policy(tiny_benchmark, tiny_checkpoint, tmp_path):
    printed = launch(
        *shlex.split(RUN),
        *ENGINE,
        *("--model", tiny_checkpoint, "--data_root", str(tiny_benchmark), "--output_dir", str(tmp_path)),
    )
    assert "distributed: DEEPSPEED, processes: 2" in printed and "ZeRO stage: 3" in printed
    log = steps_of(tmp_path)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    differences = [line["sampling/sampling_logp_difference/max"] for line in log]
    assert max(differences[:4]) < 1e-3
    assert min(differences[4:]) > 1e-2  # the control: without syncs


@pytest.mark.vllm
def test_the_synthetic_recipe_runs_with_vllm_as_it_is(tiny_benchmark, tiny_checkpoint, tmp_path):
    """The command of its first comment with `--use_vllm true`: its engine answers the whole batch of 128 rows."""
    script = "recipes/grpo.py --config recipes/synthetic/grpo.yaml --use_vllm true --max_steps 2"
    launch(
        *shlex.split(script),
        *ENGINE,
        *("--model", tiny_checkpoint, "--data_root", str(tiny_benchmark), "--output_dir", str(tmp_path)),
        config="cpu.yaml",
    )
    log = steps_of(tmp_path)
    assert [line["step"] for line in log] == [1, 2]
    assert max(line["sampling/sampling_logp_difference/max"] for line in log) < 1e-3
