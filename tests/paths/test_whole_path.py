"""Both training recipes, in process, on inputs that differ from the demo's: long clips, and SAM's mask decoder."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from aurora_rl.assembly.arguments import DataArguments, ModelArguments, TargetArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.models.loading import load_model
from aurora_rl.scripts import grpo, sft
from aurora_rl.synthetic import SyntheticConfig, write_synthetic_benchmark
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from aurora_rl.trainers.sft_config import AuroraSFTConfig

QUIET = {"report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "logging_steps": 1}


def train_both(model_args: ModelArguments, data_args: DataArguments, output_dir: Path) -> list[dict]:
    """One step of SFT, then one of GRPO from what it left; returns both logs' first lines."""
    sft_dir, grpo_dir = str(output_dir / "sft"), str(output_dir / "grpo")
    sft.main(
        model_args,
        data_args,
        TargetArguments(),
        AuroraSFTConfig(sft_dir, max_steps=1, per_device_train_batch_size=2, save_strategy="no", **QUIET),
    )
    grpo.main(
        ModelArguments(model=sft_dir, freeze=["visual", "audio_tower"]),
        data_args,
        grpo.RewardArguments(),
        AuroraGRPOConfig(
            grpo_dir,
            max_steps=1,
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=8,
            save_strategy="no",
            mask_loss_on="all",
            **QUIET,
        ),
    )
    states = [json.loads((Path(folder) / "trainer_state.json").read_text()) for folder in (sft_dir, grpo_dir)]
    return [state["log_history"][0] for state in states]


def weights(folder: Path, name: str) -> torch.Tensor:
    return load_model(str(folder)).model.state_dict()[name]


def test_ten_frames_and_ten_seconds_train_through_both_stages(
    tiny_checkpoint: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    root = tmp_path / "data"
    config = SyntheticConfig(train=3, val=0, test_s=0, test_u=0, test_n=0, rows_per_clip=1, frames=10, seconds=10.0)
    write_synthetic_benchmark(root, config)
    assert len(list((root / "media" / "train-00000_0_10000" / "frames").iterdir())) == 10
    data_args = DataArguments(
        str(root), chains="chains.jsonl", fps=1.0, num_frames=10, instruction="{reference}", min_pixels=256
    )
    sft_log, grpo_log = train_both(ModelArguments(model=tiny_checkpoint), data_args, tmp_path)
    assert sft_log["mask_bce"] > 0 and sft_log["loss"] > 0
    assert "rewards/mask_iou_reward/mean" in grpo_log
    record_property("cell", "qwen2_5_omni|SFT|passes: 1 step, all weights")
    record_property("cell", "qwen2_5_omni|GRPO|passes: 1 step, language model and head")


def test_a_sam_mask_decoder_trains_through_both_stages_from_cached_embeddings(
    omni_checkpoint: str, sam_checkpoint: str, data_args: DataArguments, tmp_path: Path
) -> None:
    data_args.embedding_cache = str(tmp_path / "embeddings")
    # Half of SAM's own size, so that its positional embeddings are interpolated.
    segmenter = {"type": "sam", "checkpoint": sam_checkpoint, "image_size": 64}
    sft_log, _ = train_both(ModelArguments(model=omni_checkpoint, segmenter=segmenter), data_args, tmp_path)
    assert sft_log["mask_bce"] > 0
    cached = [media_id for path in (tmp_path / "embeddings").rglob("*.safetensors") for media_id in load_file(path)]
    assert sorted(cached) == sorted({sample.media_id for sample in load_split(data_args, data_args.train_split)})
    started = load_model(omni_checkpoint, segmenter=segmenter).model.state_dict()
    name = next(key for key in started if "mask_decoder" in key and key.endswith("layers.0.mlp.lin1.weight"))
    assert not torch.equal(weights(tmp_path / "sft", name), started[name])
    assert not any("vision_encoder" in key for key in started)  # the frozen encoder is no part of the model


def test_unknown_reward_is_an_error_before_training(
    tiny_checkpoint: str, data_args: DataArguments, tmp_path: Path
) -> None:
    args = AuroraGRPOConfig(str(tmp_path), per_device_train_batch_size=2, num_generations=2, **QUIET)
    with pytest.raises(Exception, match="no_such_reward"):
        grpo.main(
            ModelArguments(model=tiny_checkpoint),
            data_args,
            grpo.RewardArguments(["reward_fns.format:no_such_reward"]),
            args,
        )


@pytest.mark.parametrize(
    ("target", "reflections", "message"),
    [("reflection", False, "none of .* has a mistake"), ("chain", True, "would leave `reflections` unread")],
)
def test_reflective_training_and_its_mistakes_come_together(
    target: str, reflections: bool, message: str, tiny_checkpoint: str, data_args: DataArguments, tmp_path: Path
) -> None:
    if reflections:
        (tmp_path / "reflections.jsonl").touch()
        data_args = dataclasses.replace(data_args, reflections=str(tmp_path / "reflections.jsonl"))
    args = AuroraSFTConfig(str(tmp_path), max_steps=1, **QUIET)
    with pytest.raises(Exception, match=message):
        sft.main(ModelArguments(model=tiny_checkpoint), data_args, TargetArguments(target=target), args)
