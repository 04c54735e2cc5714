"""Two processes under ZeRO-3, where a rank that skips a module or dies leaves the other waiting.

A hang shows as the timeout of the subprocess.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = shlex.split(
    "-m accelerate.commands.launch --config_file accelerate_configs/zero3.yaml --num_processes 2 --mixed_precision no "
    "--main_process_port 0 tests/trainers/faulty_grpo.py"
)
OPTIONS = shlex.split(
    "--max_steps 6 --logging_steps 1 --learning_rate 1e-3 --eval_strategy no --save_strategy no --seed 1 "
    "--ddp_backend gloo --use_cpu false --bf16 false --per_device_train_batch_size 4 --num_generations 2 "
    "--max_completion_length 6 --reward_funcs tests/trainers/faulty_grpo.py:letters_reward --reward_weights 1"
)
#: Logged values that measure the machine.
VOLATILE = ("step_time", "runtime", "per_second")


@pytest.fixture
def start(tiny_benchmark: Path, tiny_checkpoint: str, tmp_path: Path):
    """Start a run: start(fault, output folder, options of the recipe that win)."""
    config = tmp_path / "grpo.yaml"
    # The towers are trained, so that a skipped one is missed in the backward pass, too.
    config.write_text(re.sub("(?m)^(freeze|use_cpu):.*$", "", (ROOT / "recipes/synthetic/grpo.yaml").read_text()))

    def run(fault: str, output_dir: Path, *options: str) -> subprocess.Popen:
        command = [sys.executable, *LAUNCH, fault, "--config", str(config), "--model", tiny_checkpoint]
        command += ["--data_root", str(tiny_benchmark), "--output_dir", str(output_dir), *OPTIONS, *options]
        environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment["PYTHONPATH"] = str(ROOT)
        output_dir.mkdir(exist_ok=True)
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    return run


def finish(process: subprocess.Popen, *, timeout: float = 240) -> str:
    """What a run that must succeed wrote to stderr."""
    stderr = wait(process, timeout=timeout)
    assert process.returncode == 0, stderr[-20000:]
    return stderr


def fail(process: subprocess.Popen, *, timeout: float = 240) -> str:
    """What a run that must not succeed wrote to stderr."""
    stderr = wait(process, timeout=timeout)
    assert process.returncode != 0, stderr[-20000:]
    return stderr


def wait(process: subprocess.Popen, *, timeout: float) -> str:
    try:
        return process.communicate(timeout=timeout)[1]
    except subprocess.TimeoutExpired:
        process.terminate()
        raise AssertionError(f"hangs: {process.communicate()[1][-20000:]}") from None


def log_of(folder: Path) -> list[dict]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [{k: v for k, v in log.items() if not k.endswith(VOLATILE)} for log in history if "loss" in log]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_no_rank_waits_for_another_whose_rows_are_of_another_kind(start, tmp_path):
    options = shlex.split("--max_steps 5 --mask_truncated_completions true --mask_loss_on all")
    finish(start("odd_rank", tmp_path / "odd", *options))
    log = log_of(tmp_path / "odd")
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5]
    assert all(0 < line["grad_norm"] < float("inf") for line in log)
    assert [line["completions/clipped_ratio"] for line in log] == [0.0, 0.0, 0.0, 0.0, 0.5]  # all of rank 1


@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_a_reward_that_raises_on_one_rank_ends_all(start, tmp_path):
    reward = "--reward_funcs tests/trainers/faulty_grpo.py:raising_reward"
    stderr = fail(start("none", tmp_path / "raising", *shlex.split(reward)))
    last_words = stderr.rpartition("Root Cause")[2]
    assert re.search(r"rank\s*: 1 ", last_words)
    assert (
        "RewardError: reward function 'raising_reward' raised ConnectionError: the judge does not answer" in last_words
    )
    pids = [int(path.name) for path in (tmp_path / "raising/pids").iterdir()]
    assert len(pids) == 2
    assert not any(map(is_alive, pids))


@pytest.mark.multiprocess
@pytest.mark.timeout(900)
def test_a_run_that_is_terminated_and_killed_in_writing_ends_as_an_unbroken_one(start, tmp_path):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    saving = shlex.split("--save_strategy steps --save_steps 4 --save_total_limit 1")
    resuming = [*saving, "--resume_from_checkpoint", "true"]
    finish(start("none", unbroken, *saving))

    stderr = fail(start("rank_terminated", broken, *saving))
    assert f"checkpoint-2 is written to {broken}" in stderr
    assert re.search(r"exitcode\s*: 143", stderr)
    assert not (broken / "model.safetensors").exists()

    kill_in_writing(start("stuck_in_writing", broken, *resuming), broken)
    assert checkpoints(broken) == ["checkpoint-2", "incomplete/checkpoint-4"]
    assert (broken / "incomplete/checkpoint-4/trainer_state.json").exists()

    stderr = fail(start("launcher_terminated", broken, *resuming))
    assert "incomplete is removed" in stderr
    assert f"checkpoint-5 is written to {broken}" in stderr
    assert checkpoints(broken) == ["checkpoint-5"]

    finish(start("none", broken, *resuming))
    assert checkpoints(broken) == ["checkpoint-6"]
    assert log_of(broken) == log_of(unbroken)
    assert len({line["loss"] for line in log_of(unbroken)}) > 1
    expected, found = (load_file(folder / "model.safetensors") for folder in (unbroken, broken))
    assert all(found[name].equal(expected[name]) for name in expected)


def checkpoints(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob("**/checkpoint-*"))


def kill_in_writing(process: subprocess.Popen, folder: Path) -> None:
    deadline = time.monotonic() + 240
    while not (folder / "is_writing").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1][-20000:]
        time.sleep(0.1)
    for pid in (process.pid, *(int(path.name) for path in (folder / "pids").iterdir())):
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
