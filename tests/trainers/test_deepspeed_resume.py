"""Under DeepSpeed's own engine: an honest checkpoint is resumed from, and code planted in one does not run."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.trainers.test_safe_loading import Bomb
from tests.warm_interpreter import warm_python

ROOT = Path(__file__).parents[2]
OPTIONS = shlex.split(
    "--num_frames 4 --save_strategy steps --save_steps 1 --save_only_model false --per_device_train_batch_size 2 "
    "--eval_strategy no --warmup_steps 0 --dataloader_num_workers 0 --dataloader_persistent_workers false"
)
LAUNCH = shlex.split(
    "-m accelerate.commands.launch --config_file accelerate_configs/zero2.yaml --num_processes 1 --mixed_precision no "
    "--main_process_port 0 recipes/sft.py"
)

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def train(tiny_benchmark: Path, tiny_checkpoint: str, tmp_path_factory) -> Callable[..., subprocess.CompletedProcess]:
    """Run recipes/sft.py under ZeRO-2 in one process."""
    config = tmp_path_factory.mktemp("config") / "sft.yaml"
    text = (ROOT / "recipes/synthetic/sft.yaml").read_text()
    config.write_text("".join(line for line in text.splitlines(True) if not line.startswith("use_cpu")))
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def run(output_dir: Path, *options: str) -> subprocess.CompletedProcess:
        command = [warm_python(), *LAUNCH, "--config", str(config), "--model", tiny_checkpoint, *OPTIONS]
        command += ["--data_root", str(tiny_benchmark), "--output_dir", str(output_dir), *options]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)

    return run


@pytest.fixture(scope="module")
def checkpoint(train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run whose first step is saved; read-only."""
    folder = tmp_path_factory.mktemp("run")
    done = train(folder, "--max_steps", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "distributed: DEEPSPEED" in done.stdout + done.stderr
    return folder / "checkpoint-1"


def test_an_honest_checkpoint_is_resumed_from(train, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "checkpoint-1")
    done = train(tmp_path, "--max_steps", "2", "--resume_from_checkpoint", "true")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "checkpoint-2").is_dir()


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "*_optim_states.pt"])
def test_code_that_lies_in_a_checkpoint_does_not_run(train, checkpoint, tmp_path, name):
    shutil.copytree(checkpoint, tmp_path / "checkpoint-1")
    [file] = (tmp_path / "checkpoint-1" / "global_step1").glob(name)
    content = torch.load(file, weights_only=False, map_location="cpu")
    torch.save({**content, "planted": Bomb(tmp_path / "ran")}, file)
    done = train(tmp_path, "--max_steps", "2", "--resume_from_checkpoint", "true")
    assert done.returncode != 0 and not (tmp_path / "ran").exists()
    assert f"{file.name} is damaged, or holds more than weights" in done.stderr
