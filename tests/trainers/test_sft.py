"""What the SFT trainer computes, held against losses worked out by hand."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from aurora_rl.data.sample import AVSample
from aurora_rl.metrics import mask_iou
from aurora_rl.models.loading import LoadedModel, load_model
from aurora_rl.tasks.targets import Target
from aurora_rl.trainers.sft import AuroraSFTTrainer

MakeSFT = Callable[..., AuroraSFTTrainer]


def batch_of(trainer: AuroraSFTTrainer, indices: list[int]) -> dict[str, Any]:
    return trainer.data_collator([trainer.train_dataset[i] for i in indices])


def weights(trainer: AuroraSFTTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def plain_losses(model: torch.nn.Module, batch: dict[str, Any]) -> tuple[float, float, float]:
    """Cross-entropy, BCE and Dice from a forward pass that knows nothing of the fused LM head."""
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "gt_masks", "seg_weights")}
    with torch.no_grad():
        outputs = model(**inputs)
    labels = batch["labels"][:, 1:]
    ce = functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=-100)
    bce, dice = [], []
    for logits, truth in zip(outputs.mask_logits.split(4), batch["gt_masks"], strict=True):  # 4 frames a clip
        logits = functional.interpolate(logits[None], size=(64, 64), mode="bilinear", align_corners=False)[0]
        bce.append(functional.binary_cross_entropy_with_logits(logits, truth.float()))
        p, g = logits.sigmoid(), truth.float()
        frames = 1 - (2 * (p * g).sum((1, 2)) + 1) / (p.sum((1, 2)) + g.sum((1, 2)) + 1)
        named = g.amax((1, 2)) > 0
        dice.append(frames[named].mean() if named.any() else torch.tensor(0.0))
    return ce.item(), torch.stack(bce).mean().item(), torch.stack(dice).mean().item()


def test_the_loss_is_ce_plus_two_bce_plus_half_a_dice(
    make_sft: MakeSFT, loaded: LoadedModel, train_samples: list[AVSample]
) -> None:
    trainer = make_sft()
    # The last row is a null reference where the split has one: empty masks, no Dice.
    rows = [0, 3, next((i for i, sample in enumerate(train_samples) if sample.is_null), 5)]
    ce, bce, dice = plain_losses(loaded.model, batch_of(trainer, rows))
    loss = trainer.compute_loss(trainer.model.eval(), batch_of(trainer, rows))
    assert loss.item() == pytest.approx(ce + 2.0 * bce + 0.5 * dice, abs=1e-5)
    assert min(ce, bce, dice) > 0.1


def test_the_weights_of_the_losses_are_options(make_sft: MakeSFT, loaded: LoadedModel) -> None:
    trainer = make_sft(ce_weight=0.5, mask_bce_weight=3.0, mask_dice_weight=0.0)
    ce, bce, _ = plain_losses(loaded.model, batch_of(trainer, [0, 1]))
    loss = trainer.compute_loss(trainer.model.eval(), batch_of(trainer, [0, 1]))
    assert loss.item() == pytest.approx(0.5 * ce + 3.0 * bce, abs=1e-5)


def test_a_row_without_seg_teaches_words_but_no_masks(make_sft: MakeSFT, loaded: LoadedModel) -> None:
    trainer = make_sft()
    trainer.data_collator.target = lambda sample: Target("I do not know.")
    ce, _, _ = plain_losses(loaded.model, batch_of(trainer, [0, 1]))
    loss = trainer.compute_loss(trainer.model, batch_of(trainer, [0, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(ce, abs=1e-5)
    assert all(parameter.grad.eq(0.0).all() for parameter in trainer.model.seg_head.parameters())


def test_two_accumulated_half_batches_take_the_step_of_one_batch(
    make_sft: MakeSFT, train_samples: list[AVSample]
) -> None:
    """The halves differ in their numbers of tokens and of masks: the means are over these, not over batches."""
    silent = dataclasses.replace(train_samples[0], chain=train_samples[0].chain.replace("[SEG]", "hidden"))
    samples = [silent, *train_samples[1:4]]
    steps = []
    for options in (
        {"per_device_train_batch_size": 4},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    ):
        # Clipping would hide a factor.
        sgd = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0}
        trainer = make_sft(samples=samples, max_steps=1, **sgd, **options)
        before = weights(trainer)
        trainer.train()
        steps.append({name: weight - before[name] for name, weight in weights(trainer).items()})
    for name, step in steps[0].items():
        assert torch.allclose(steps[1][name], step, atol=2e-6, rtol=1e-4), name
    assert min(steps[0][f"{name}.weight"].abs().max() for name in ("lm_head", "seg_head.projector.2")) > 1e-3


def test_the_logged_loss_of_accumulated_batches_is_that_of_one_batch(
    make_sft: MakeSFT, train_samples: list[AVSample]
) -> None:
    logs = []
    for size, accumulation in ((4, 1), (2, 2)):
        trainer = make_sft(
            samples=train_samples[:4],
            max_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        logs.append(trainer.state.log_history[0])
    for name in ("loss", "mask_bce", "mask_dice", "teacher_forced_iou"):
        assert logs[1][name] == pytest.approx(logs[0][name], rel=1e-5)


def test_evaluation_gives_the_loss_of_its_batches(make_sft: MakeSFT, loaded: LoadedModel) -> None:
    trainer = make_sft(per_device_eval_batch_size=3)
    ce, bce, dice = plain_losses(loaded.model, batch_of(trainer, [0, 1, 2]))  # the rows of the eval split
    assert trainer.evaluate()["eval_loss"] == pytest.approx(ce + 2.0 * bce + 0.5 * dice, abs=1e-5)


def test_the_teacher_forced_iou_is_a_mean_over_rows(make_sft: MakeSFT, loaded: LoadedModel) -> None:
    model = loaded.model
    with torch.no_grad():
        model.seg_head.projector[-1].bias[-1] = 2.5  # more than background
    trainer = make_sft(per_device_eval_batch_size=2)  # batches of two and one
    batch = batch_of(trainer, [0, 1, 2])
    with torch.no_grad():
        logits = model(**{k: v for k, v in batch.items() if k not in ("labels", "gt_masks", "seg_weights")}).mask_logits
    logits = model.seg_head.mask_decoder.postprocess(logits, (64, 64)).split(4)
    iou = [mask_iou(row > 0, truth) for row, truth in zip(logits, batch["gt_masks"], strict=True)]
    assert len(set(iou)) > 1
    assert trainer.evaluate()["eval_teacher_forced_iou"] == pytest.approx(sum(iou) / 3, abs=1e-6)


def test_lora_moves_adapters_and_saved_modules_alone_and_is_loaded_again(make_sft: MakeSFT, tmp_path: Path) -> None:
    trainer = make_sft(peft=True)
    before = weights(trainer)
    trainer.train()
    moved = {name for name, weight in weights(trainer).items() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if "lora_" in name or "modules_to_save" in name}

    trainer.save_model(str(tmp_path / "adapter"))
    reloaded = load_model(str(tmp_path / "adapter")).model.eval()
    batch = {k: v for k, v in batch_of(trainer, [0, 1]).items() if k not in ("labels", "gt_masks", "seg_weights")}
    with torch.no_grad():
        expected, found = trainer.model.eval()(**batch), reloaded(**batch)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.mask_logits, expected.mask_logits)


def test_the_checkpoint_with_the_best_masks_is_the_one_that_is_kept(make_sft: MakeSFT, tmp_path: Path) -> None:
    trainer = make_sft(
        max_steps=3,
        learning_rate=3e-2,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_teacher_forced_iou",
        greater_is_better=True,
    )
    with torch.no_grad():
        trainer.model.seg_head.projector[-1].bias[-1] = 2.5
    trainer.train()
    ious = [log["eval_teacher_forced_iou"] for log in trainer.state.log_history if "eval_teacher_forced_iou" in log]
    best = ious.index(max(ious)) + 1
    assert len(set(ious)) > 1
    assert trainer.state.best_model_checkpoint == str(tmp_path / "sft" / f"checkpoint-{best}")
    kept = load_model(trainer.state.best_model_checkpoint).model
    for name, parameter in kept.named_parameters():
        assert torch.equal(parameter, trainer.model.get_parameter(name)), name
