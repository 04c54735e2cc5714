"""Two processes, each under the shipped accelerate configs: sharding changes where numbers lie, not what they are."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aurora_rl.models.loading import load_model
from aurora_rl.models.segmenters.sam import SamSegmenter

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = shlex.split(
    "--max_steps 2 --logging_steps 1 --learning_rate 1e-3 --eval_strategy no --save_strategy no --seed 1 "
    "--ddp_backend gloo --bf16 false --dataloader_num_workers 0 --dataloader_persistent_workers false"
)
# DeepSpeed runs on a CPU only if accelerate is not told that there is one: `use_cpu` would switch it off in silence.
LAUNCHERS = {
    "ddp": ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"],
    "zero2": ["-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/zero2.yaml"],
    "zero3": ["-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/zero3.yaml"],
}
ACCELERATE_OPTIONS = shlex.split("--num_processes 2 --mixed_precision no --main_process_port 0")


def train(
    launcher: str,
    recipe: str,
    model: str,
    data_root: Path,
    output_dir: Path,
    *options: str,
    config: Path | None = None,
) -> list[dict]:
    """Run a recipe on two processes; its log history without the last line."""
    command = [sys.executable, *LAUNCHERS[launcher]]
    command += [] if launcher == "ddp" else ACCELERATE_OPTIONS
    command += [f"recipes/{recipe}.py", "--config", str(config or f"recipes/synthetic/{recipe}.yaml")]
    command += [*OPTIONS, *options]
    command += ["--model", model, "--data_root", str(data_root), "--output_dir", str(output_dir)]
    command += ["--use_cpu", "true" if launcher == "ddp" else "false"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-20000:]
    asked = {"ddp": "MULTI_CPU", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}[launcher]
    assert f"distributed: {asked}, processes: 2" in result.stderr
    if launcher != "ddp":
        assert re.search(rf"ZeRO stage: {launcher[-1]}\b", result.stderr)
    return json.loads((output_dir / "trainer_state.json").read_text())["log_history"][:-1]


@pytest.mark.multiprocess
@pytest.mark.timeout(900)
def test_sft_has_the_same_losses_under_ddp_zero2_and_zero3(tiny_benchmark, tiny_checkpoint, tmp_path):
    logs = {
        launcher: train(launcher, "sft", tiny_checkpoint, tiny_benchmark, tmp_path / launcher) for launcher in LAUNCHERS
    }
    assert [line["step"] for line in logs["ddp"]] == [1, 2]
    for launcher in ("zero2", "zero3"):
        for line, expected in zip(logs[launcher], logs["ddp"], strict=True):
            for name in ("loss", "mask_bce", "mask_dice", "teacher_forced_iou"):
                assert line[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), (launcher, name)


@pytest.mark.multiprocess
@pytest.mark.timeout(900)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_grpo_trains_with_a_reference_model(launcher, tiny_benchmark, tiny_checkpoint, tmp_path):
    options = shlex.split("--per_device_train_batch_size 4 --num_generations 2 --max_completion_length 6 --beta 0.1")
    log = train(launcher, "grpo", tiny_checkpoint, tiny_benchmark, tmp_path, *options)
    assert [line["step"] for line in log] == [1, 2]
    assert log[0]["kl"] == pytest.approx(0.0, abs=1e-5)  # the reference is the policy before its first step
    assert all(0 <= line["rewards/mask_iou_reward/mean"] <= 1 for line in log)


@pytest.mark.multiprocess
@pytest.mark.timeout(900)
def test_a_plain_model_gets_a_pretrained_sam_decoder_under_zero3(
    omni_checkpoint, sam_checkpoint, tiny_benchmark, tmp_path
):
    recipe = (ROOT / "recipes/synthetic/sft.yaml").read_text()
    segmenter = f"segmenter: {{type: sam, checkpoint: {sam_checkpoint}, image_size: 64}}"
    config = tmp_path / "sft.yaml"
    config.write_text(f"{recipe}\n{segmenter}\nembedding_cache: {tmp_path / 'embeddings'}\n")
    options = ["--learning_rate", "0", "--per_device_train_batch_size", "2"]
    log = train("zero3", "sft", omni_checkpoint, tiny_benchmark, tmp_path / "sft", *options, config=config)
    assert all(0 < line["mask_bce"] < 5 for line in log)
    trained = load_model(str(tmp_path / "sft")).model.seg_head.mask_decoder.state_dict()
    pretrained = SamSegmenter.from_checkpoint(sam_checkpoint, image_size=64).state_dict()
    assert trained.keys() == pretrained.keys()
    assert all(torch.equal(trained[name], pretrained[name]) for name in pretrained)
