"""GRPO runs the head of its task, of several that a model has, and no other: here the box head beside the masks."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.encoder import assemble_encoder
from aurora_rl.data.dataset import to_dataset
from aurora_rl.data.sample import AVSample
from aurora_rl.models.encoding import SampleEncoder
from aurora_rl.models.loading import LoadedModel, load_model
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from tests.trainers.conftest import COMMON, GRPO, ScriptedTrainer, mixed

BOXES = {"boxes": {"type": "dot", "image_size": 32, "width": 8}}


@pytest.fixture
def both_heads(tiny_checkpoint: str) -> LoadedModel:
    return load_model(tiny_checkpoint, heads=BOXES)


@pytest.fixture
def encode_boxes(data_args: DataArguments, both_heads: LoadedModel, train_samples: list[AVSample]) -> SampleEncoder:
    args = dataclasses.replace(data_args, task="aurora_rl.tasks.reference_boxes:ReferenceBoxes")
    return assemble_encoder(args, both_heads, train_samples)


class Columns:
    """A reward that keeps its columns."""

    def __call__(self, completions: list[Any], **columns: Any) -> list[float]:
        self.columns = columns
        return [float(index % 2) for index in range(len(completions))]


def boxed(sample: AVSample, index: int) -> str:
    return mixed(sample, index).replace("[SEG]", "[BOX]")


def make_trainer(
    encode: SampleEncoder, model: nn.Module, rewards: list[Any], samples: list[AVSample], folder: Path, **options: Any
) -> AuroraGRPOTrainer:
    trainer = ScriptedTrainer(
        model=model,
        reward_funcs=rewards,
        args=AuroraGRPOConfig(**{"output_dir": str(folder), **COMMON, **GRPO, **options}),
        encode=encode,
        train_dataset=to_dataset(samples, encode.text_prompt),
        processing_class=encode.processor,
    )
    trainer.script = boxed
    return trainer


@pytest.mark.parametrize("options", [{}, {"num_iterations": 2}], ids=["pass of its own", "scoring pass"])
def test_boxes_are_rewarded_logged_and_trained_and_masks_are_left_alone(
    encode_boxes: SampleEncoder, both_heads: LoadedModel, train_samples: list[AVSample], tmp_path: Path, options: dict
) -> None:
    model, reward, calls = both_heads.model, Columns(), []
    for name, head in model.heads.items():
        head.register_forward_hook(lambda *_, name=name: calls.append(name))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    rewards = [reward, "reward_fns.box_iou:box_iou_reward"]
    trainer = make_trainer(encode_boxes, model, rewards, train_samples[:4], tmp_path, mask_loss_on="all", **options)
    trainer.train()
    assert set(calls) == {"boxes"}
    columns, texts = reward.columns, [answer.text for answer in reward.columns["answers"]]
    assert [boxes is None for boxes in columns["pred_boxes"]] == ["[BOX]" not in text for text in texts]
    assert any("[BOX]" in text for text in texts) and "pred_masks" not in columns
    [logs, *_] = [logs for logs in trainer.state.log_history if "box_loss" in logs]
    assert logs["box_loss"] > 0 and any(name.startswith("iou/") for name in logs)
    assert "mask_loss" not in logs
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert any(name.startswith("boxes_head") for name in moved)
    assert not any(name.startswith("seg_head") for name in moved)


def test_a_model_without_the_task_s_head_is_refused(
    encode_boxes: SampleEncoder, loaded: LoadedModel, train_samples: list[AVSample], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="the model has no head 'boxes'"):
        make_trainer(encode_boxes, loaded.model, [Columns()], train_samples[:2], tmp_path)
