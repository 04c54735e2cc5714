"""Rows without masks, frames without annotation, and a task that is answered in words alone."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from aurora_rl.assembly.arguments import DataArguments, ModelArguments
from aurora_rl.assembly.encoder import assemble_encoder
from aurora_rl.assembly.model import peft_config
from aurora_rl.data.dataset import to_dataset
from aurora_rl.data.sample import AVSample
from aurora_rl.metrics import mask_iou
from aurora_rl.models.collate import SFTCollator
from aurora_rl.models.encoding import SampleEncoder
from aurora_rl.models.loading import LoadedModel, load_model
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from aurora_rl.trainers.sft import AuroraSFTTrainer
from aurora_rl.trainers.sft_config import AuroraSFTConfig
from tests.trainers.conftest import COMMON, GRPO
from tests.words_task import NameTheObject

TASK = "tests/words_task.py:NameTheObject"
MASK_REWARD = "reward_fns.mask_iou:mask_iou_reward"


def without_masks(samples: list[AVSample]) -> list[AVSample]:
    """The rows of the first kind that are no null reference, which has a truth of its own."""
    return [dataclasses.replace(sample, mask_paths=()) for sample in samples if not sample.is_null]


def annotated(sample: AVSample, *frames: int) -> AVSample:
    """The row with masks on these frames alone."""
    paths = tuple(path if index in frames else "" for index, path in enumerate(sample.mask_paths))
    return dataclasses.replace(sample, mask_paths=paths)


# Frames without annotation, and rows without truth, of a task with masks


def test_sft_trains_masks_on_annotated_frames_alone(
    make_sft: Callable[..., AuroraSFTTrainer], train_samples: list[AVSample], loaded: LoadedModel
) -> None:
    sample = next(sample for sample in train_samples if not sample.is_null)
    trainer = make_sft(samples=[annotated(sample, 0, 3)], ce_weight=0.0, mask_dice_weight=0.0)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "gt_masks", "seg_weights", "annotated_frames")}
    with torch.no_grad():
        logits = loaded.model(**inputs).mask_logits[[0, 3]]
    logits = functional.interpolate(logits[None], size=(64, 64), mode="bilinear", align_corners=False)[0]
    (truth,) = batch["gt_masks"]
    assert truth.shape == (2, 64, 64)
    loss = trainer.compute_loss(trainer.model.eval(), batch)
    expected = functional.binary_cross_entropy_with_logits(logits, truth.float())
    assert loss.item() == pytest.approx(2.0 * expected.item(), abs=1e-5)


def test_sft_takes_the_words_of_a_row_without_truth_and_no_masks(
    make_sft: Callable[..., AuroraSFTTrainer], train_samples: list[AVSample]
) -> None:
    unknown, known = without_masks(train_samples)[0], train_samples[1]
    trainer = make_sft(samples=[unknown, known], ce_weight=0.0)
    rows = [trainer.train_dataset[i] for i in (0, 1)]
    alone = trainer.compute_loss(trainer.model.eval(), trainer.data_collator(rows[1:]))
    both = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    assert both.item() == pytest.approx(alone.item(), abs=1e-5)
    assert len(trainer._metrics["eval"]["teacher_forced_iou"]) == 2  # one of each loss, none of the row without truth
    words = trainer.compute_loss(trainer.model, trainer.data_collator(rows[:1]))
    assert words.item() == 0.0


def test_sft_logs_no_iou_where_no_row_has_truth(
    make_sft: Callable[..., AuroraSFTTrainer], train_samples: list[AVSample]
) -> None:
    trainer = make_sft(samples=without_masks(train_samples)[:2], max_steps=1)
    trainer.train()
    assert all("teacher_forced_iou" not in logs for logs in trainer.state.log_history)


def test_mask_rewards_see_annotated_frames_and_rows_with_truth_alone(
    make_grpo: Callable[..., AuroraGRPOTrainer], rollout: Callable[..., dict[str, Any]], train_samples: list[AVSample]
) -> None:
    seen: dict[str, Any] = {}

    def record(completions: list[Any], **columns: Any) -> list[float]:
        seen.update({name: list(columns[name]) for name in ("pred_masks", "gt_masks", "mask_counts")})
        return [1.0] * len(completions)

    named = [sample for sample in train_samples if not sample.is_null]
    samples = [*without_masks(named[:1]), annotated(named[1], 1, 2)]
    trainer = make_grpo(samples=samples, script="gold", rewards=[record, MASK_REWARD])
    output = rollout(trainer)
    assert [masks is None for masks in seen["gt_masks"]] == [True, True, False, False]
    assert [tuple(masks.shape) for masks in seen["pred_masks"]] == [(4, 64, 64)] * 2 + [(2, 64, 64)] * 2
    assert seen["mask_counts"][:2] == [None, None]
    pairs = zip(seen["pred_masks"][2:], seen["gt_masks"][2:], strict=True)
    iou = [mask_iou(predicted, truth) for predicted, truth in pairs]
    rewards = list(trainer._logs["rewards"]["mask_iou_reward"])
    assert all(torch.tensor(rewards[:2]).isnan())  # TRL's None
    assert rewards[2:] == pytest.approx(iou)
    assert output["mask_weights"].tolist() == [0.0, 0.0, 1.0, 1.0]
    loss = trainer._compute_loss(trainer.model, {**output, "num_items_in_batch": output["completion_mask"].sum()})
    assert loss.isfinite()


# A task without a head


@pytest.fixture
def of_words(omni_checkpoint: str, data_args: DataArguments, train_samples: list[AVSample]) -> SampleEncoder:
    """The encoder of a model that has no head, and its rows."""
    loaded = load_model(omni_checkpoint)
    args = dataclasses.replace(data_args, task=TASK, chains=None)
    encode = assemble_encoder(args, loaded, without_masks(train_samples))
    encode.loaded = loaded  # type: ignore[attr-defined]
    return encode


def sft_of_words(encode: SampleEncoder, model: nn.Module, samples: list[AVSample], folder: Path) -> AuroraSFTTrainer:
    return AuroraSFTTrainer(
        model=model,
        args=AuroraSFTConfig(**{"output_dir": str(folder), "per_device_train_batch_size": 2, **COMMON}),
        data_collator=SFTCollator(encode, None, encode.task.target),
        train_dataset=to_dataset(samples, encode.text_prompt),
        processing_class=encode.processor,
    )


def grpo_of_words(
    encode: SampleEncoder, model: nn.Module, rewards: list[Any], samples: list[AVSample], folder: Path
) -> AuroraGRPOTrainer:
    return AuroraGRPOTrainer(
        model=model,
        reward_funcs=rewards,
        args=AuroraGRPOConfig(**{"output_dir": str(folder), **COMMON, **GRPO}),
        encode=encode,
        train_dataset=to_dataset(samples, encode.text_prompt),
        processing_class=encode.processor,
    )


def test_a_batch_of_words_has_nothing_for_a_head(of_words: SampleEncoder, train_samples: list[AVSample]) -> None:
    collate = SFTCollator(of_words, None, of_words.task.target)
    batch = collate([sample.to_row() for sample in without_masks(train_samples)[:2]])
    assert not [name for name in batch if name.startswith("seg_") or name == "gt_masks"]


def test_sft_of_words_is_the_cross_entropy_of_a_model_without_heads(
    of_words: SampleEncoder, train_samples: list[AVSample], tmp_path: Path
) -> None:
    model = of_words.loaded.model
    assert model.heads == {}
    trainer = sft_of_words(of_words, model, without_masks(train_samples)[:2], tmp_path)
    batch = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad():
        logits = copy.deepcopy(model)(**{k: v for k, v in batch.items() if k != "labels"}).logits
    expected = functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert trainer.compute_loss(model.eval(), dict(batch)).item() == pytest.approx(expected.item(), abs=1e-5)
    trainer.train()
    assert all("mask_bce" not in logs for logs in trainer.state.log_history)


@pytest.mark.parametrize("has_head", [False, True], ids=["model without heads", "model with a mask head"])
def test_grpo_of_words_calls_no_head(
    of_words: SampleEncoder, loaded: LoadedModel, train_samples: list[AVSample], tmp_path: Path, has_head: bool
) -> None:
    columns: dict[str, Any] = {}

    def short_reward(completions: list[Any], **given: Any) -> list[float]:
        columns.update(given)
        return [float(index % 2) for index in range(len(completions))]

    model = loaded.model if has_head else of_words.loaded.model
    calls: list[str] = []
    for name, head in model.heads.items():
        head.register_forward_hook(lambda *_, name=name: calls.append(name))
    trainer = grpo_of_words(of_words, model, [short_reward], without_masks(train_samples)[:2], tmp_path)
    trainer.train()
    assert calls == []
    assert not any(parameter.requires_grad for head in model.heads.values() for parameter in head.parameters())
    assert not {"pred_masks", "mask_probs", "mask_counts"} & columns.keys()
    assert {type(answer).__name__ for answer in columns["answers"]} == {"NamedObject"}
    logged = {name for logs in trainer.state.log_history for name in logs}
    assert not [name for name in logged if "iou" in name or "mask" in name]
    assert any(name.startswith("category/") for name in logged)


def test_a_clip_that_is_sound_alone_is_trained_on(
    of_words: SampleEncoder, train_samples: list[AVSample], tmp_path: Path
) -> None:
    heard = [dataclasses.replace(sample, frame_paths=()) for sample in without_masks(train_samples)[:2]]
    assert "<|VIDEO|>" not in of_words.tokenizer.decode(of_words(heard[0]).prompt.prompt_ids)
    trainer = sft_of_words(of_words, of_words.loaded.model, heard, tmp_path)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0


def test_a_still_picture_without_sound_is_trained_on(
    of_words: SampleEncoder, train_samples: list[AVSample], tmp_path: Path
) -> None:
    stills = [
        dataclasses.replace(sample, frame_paths=sample.frame_paths[:1], audio_path=None)
        for sample in without_masks(train_samples)[:2]
    ]
    trainer = sft_of_words(of_words, of_words.loaded.model, stills, tmp_path)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0


def test_lora_of_a_model_without_heads_saves_the_other_modules(of_words: SampleEncoder) -> None:
    args = ModelArguments(model="", use_peft=True)
    config = peft_config(args, of_words.loaded)
    assert config.modules_to_save == ["lm_head", "embed_tokens"]
    assert config.segmenter is None
    args.lora_modules_to_save = ["seg_head", "lm_haed"]
    with pytest.raises(ValueError, match=r"lora_modules_to_save names \['lm_haed'\], which the model lacks"):
        peft_config(args, of_words.loaded)


def test_the_task_of_these_tests_has_no_head() -> None:
    assert NameTheObject().head is None
