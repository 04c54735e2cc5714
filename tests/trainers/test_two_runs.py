"""Two trainings with one output folder, as they are typed: the second is refused, and the first does not notice."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aurora_rl.files.output_lock import lock_of

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = shlex.split(
    "--config recipes/synthetic/sft.yaml --max_steps 2 --save_steps 1 --save_total_limit 2 --save_only_model false "
    "--per_device_train_batch_size 2 --eval_strategy no --warmup_steps 1 --dataloader_num_workers 0 "
    "--dataloader_persistent_workers false"
)


def is_held_by(process: subprocess.Popen, folder: Path) -> bool:
    """Whether the folder's lock bears the name of a process."""
    lock = lock_of(folder, is_folder=True)
    return lock.is_file() and f'"pid": {process.pid},' in lock.read_text()


def test_of_two_trainings_with_one_output_the_second_is_refused_and_the_first_ends_well(
    tiny_benchmark, tiny_checkpoint, tmp_path
):
    out, log = tmp_path / "out", tmp_path / "first.log"
    command = [sys.executable, "recipes/sft.py", *OPTIONS]
    command += ["--model", tiny_checkpoint, "--data_root", str(tiny_benchmark), "--output_dir", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (
        log.open("w") as file,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT) as first,
    ):
        try:
            while not is_held_by(first, out):
                assert first.poll() is None, log.read_text()
                time.sleep(0.05)
            first.send_signal(signal.SIGSTOP)  # so that it holds the folder for as long as the second takes to start
            second = subprocess.run(
                [*command, "--seed", "2"], cwd=ROOT, env=environment, capture_output=True, text=True
            )
            first.send_signal(signal.SIGCONT)
            first.wait()
        finally:
            first.kill()
    assert second.returncode != 0 and "Traceback" not in second.stderr
    assert f"another run writes to {out}: process {first.pid}" in second.stderr
    assert first.returncode == 0, log.read_text()
    assert json.loads((out / "checkpoint-2" / "trainer_state.json").read_text())["global_step"] == 2
    assert not lock_of(out, is_folder=True).exists()
