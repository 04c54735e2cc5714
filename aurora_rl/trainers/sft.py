"""Supervised fine-tuning: cross-entropy on the chain of thought, masks from its `[SEG]`, features of a teacher.

L = CE + 2.0 BCE + 0.5 Dice + λ mean_C (e_student - stopgrad e_teacher)² (paper, stage 1), from one forward pass of the
student; a task without a head has the cross-entropy alone. Teacher (stage 0) and reflective training (stage 2) take the
same loss on other targets, without the last term.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler

from aurora_rl.data.mixing import Mix, MixedSet
from aurora_rl.losses import feature_distillation_loss
from aurora_rl.models.adapters import check_trained_head
from aurora_rl.models.grounding import freeze_other_heads, install_head_forward, segmentation_model
from aurora_rl.models.heads import Head, HeadLoss
from aurora_rl.models.sharding import gather_at_once
from aurora_rl.models.teacher import Teacher
from aurora_rl.trainers.epoch_order import MixedOrder
from aurora_rl.trainers.reentrant_checkpoints import check_checkpoints
from aurora_rl.trainers.resumable import ResumableTrainer
from aurora_rl.trainers.router_loss import router_loss_of_recipe
from aurora_rl.trainers.sft_config import AuroraSFTConfig
from aurora_rl.trainers.shared_towers import CachedTowersTrainer


class AuroraSFTTrainer(ResumableTrainer, CachedTowersTrainer):
    """TRL's SFTTrainer with a mask loss and feature distillation.

    Args:
        *args, **kwargs: arguments of TRL's trainer. The collator is `models.collate.SFTCollator`; for distillation
            one of `caches.teacher_features` wraps it.
        teacher: the live teacher of a `LiveTeacherCollator`.
        sets: data sets whose rows follow one another in `train_dataset`; none in a run on one.

    Raises:
        ValueError: if `train_sampling_strategy` orders the rows of several data sets otherwise.
    """

    args: AuroraSFTConfig
    _name = "Aurora SFT"
    #: Rows with `[SEG]` that a micro-batch has on average, over the accumulated batch and all processes.
    _masks_per_forward: torch.Tensor | None = None

    def __init__(
        self, *args: Any, teacher: Teacher | None = None, sets: Sequence[MixedSet] = (), **kwargs: Any
    ) -> None:
        self._sets = tuple(sets)
        with router_loss_of_recipe(args[0] if args else kwargs["model"]):
            super().__init__(*args, **kwargs)
        check_checkpoints(self)
        if sets and (order := self.args.train_sampling_strategy) not in ("random", "sequential"):
            raise ValueError(
                f"train_sampling_strategy is {order!r}, but the shares of several data sets give the order: drop it"
            )
        check_trained_head(self.model)
        freeze_other_heads(self.model, self.data_collator.head)
        self.teacher = None if teacher is None else teacher.to(self.accelerator.device)
        # After super(), which has put its fused LM head in place of `forward`.
        install_head_forward(self.model.get_base_model() if is_peft_model(self.model) else self.model)
        gather_at_once(self.model, Head)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if not self._sets:
            return super()._get_train_sampler(train_dataset)
        unit = self._train_batch_size * self.accelerator.num_processes
        is_shuffled = self.args.train_sampling_strategy == "random"
        mix = Mix(self._sets, unit=unit, seed=self.args.seed, shuffle=is_shuffled)
        return MixedOrder(mix, lambda: int(self.state.epoch or 0))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | int | None]:
        """Get the micro-batches of a step, and count their masks where transformers counts their tokens."""
        batch_samples, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        weights = [batch["seg_weights"].sum() for batch in batch_samples if "seg_weights" in batch]
        num_masks = self.accelerator.gather(torch.tensor(weights, device=device).sum()).sum().clamp(min=1)
        self._masks_per_forward = num_masks / (self.accelerator.num_processes * max(len(batch_samples), 1))
        return batch_samples, num_items_in_batch

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        datasets = inputs.pop("datasets", None)
        if "seg_index" not in inputs:  # the task has no head
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        gt_masks, seg_weights = inputs.pop("gt_masks"), inputs.pop("seg_weights")
        annotated_frames = inputs.pop("annotated_frames", None)
        frame_counts = inputs["seg_frame_counts"][inputs["seg_clip_index"]]
        teacher_features = self._teacher_features(inputs)
        recorder = _OutputRecorder(model)
        loss = super().compute_loss(recorder, inputs, return_outputs, num_items_in_batch)
        ce_loss, outputs = loss if return_outputs else (loss, None)

        head, raw = segmentation_model(model).head(inputs["head_name"]), recorder.outputs.head_outputs
        known_sizes = [tuple(truth.shape[-2:]) for truth in gt_masks if truth is not None]
        unknown = known_sizes[0] if known_sizes else (1, 1)  # any size will do for a row without truth
        sizes = [unknown if truth is None else tuple(truth.shape[-2:]) for truth in gt_masks]
        predictions = head.rows(raw, frame_counts, sizes, annotated_frames)
        normalizer = self._masks_per_forward if self.model.training else None
        options = head.loss_options(self.args)
        losses = head.loss(predictions, gt_masks, row_weights=seg_weights, normalizer=normalizer, **options)
        self._log_predictions(head, losses, predictions, gt_masks, datasets)
        per_mask = losses.total
        if teacher_features is not None:
            distillation = feature_distillation_loss(
                raw["sparse_prompt_embeddings"],
                teacher_features,
                row_weights=seg_weights,
                normalizer=normalizer,
            )
            self._log("distillation", distillation)
            per_mask = per_mask + self.args.distill_weight * distillation
        # The mask loss of the accumulated batch is the mean of the micro-batches' ones, its cross-entropy their sum.
        is_share = self.model.training and num_items_in_batch is not None
        steps = self.current_gradient_accumulation_steps if is_share else 1
        total = self.args.ce_weight * ce_loss + per_mask / steps
        return (total, outputs) if return_outputs else total

    def _teacher_features(self, inputs: dict[str, Any]) -> torch.Tensor | None:
        """Take the teacher's features (B, C) out of the inputs, or let the live teacher compute them."""
        teacher_inputs, features = inputs.pop("teacher_inputs", None), inputs.pop("teacher_features", None)
        if teacher_inputs is None:
            return features
        if self.teacher is None:
            raise ValueError("the batches hold inputs of a live teacher: give it to the trainer as `teacher`")
        return self.teacher.features(teacher_inputs)

    @torch.no_grad()
    def _log(self, name: str, value: torch.Tensor) -> None:
        """Log the mean of the processes' values."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics[name].append(self.accelerator.gather(value.detach()).mean().item())

    @torch.no_grad()
    def _log_predictions(
        self,
        head: Head,
        losses: HeadLoss,
        predictions: list[Any],
        gt_masks: list[torch.Tensor | None],
        datasets: list[str] | None,
    ) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, part in losses.parts.items():
            self._log(name, part)
        pairs = zip(predictions, gt_masks, strict=True)
        # The processes gather an entry of every row; nan is that of a row without truth.
        iou = [math.nan if truth is None else head.row_score(row, truth) for row, truth in pairs]
        # Row by row, without those that fill up the last batch: checkpoints are chosen by an evaluation's mean.
        gather = self.accelerator.gather if self.model.training else self.accelerator.gather_for_metrics
        gathered = gather(torch.tensor(iou, device=self.accelerator.device)).tolist()
        if known := [value for value in gathered if not math.isnan(value)]:
            metrics["teacher_forced_iou"].extend(known)
        if datasets is None:
            return
        names = [each.name for each in self._sets]
        of_rows = gather(torch.tensor([names.index(name) for name in datasets], device=self.accelerator.device))
        for value, index in zip(gathered, of_rows.tolist(), strict=True):
            if not math.isnan(value):
                metrics[f"dataset/{names[index]}/teacher_forced_iou"].append(value)


class _OutputRecorder:
    """Records the model's outputs in TRL's `compute_loss`, which returns the loss alone."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.outputs: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.outputs = self.model(*args, **kwargs)
        return self.outputs
