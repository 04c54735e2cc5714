"""Masks: the state at `[SEG]` -> projector -> prompt -> mask decoder -> a mask on every frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aurora_rl.losses import mask_loss
from aurora_rl.metrics import count_masks, mask_iou
from aurora_rl.models.heads.base import FrameBatch, Head, HeadLoss, annotated_only
from aurora_rl.models.heads.segmenters import (
    Segmenter,
    build_segmenter,
    complete_segmenter_config,
)
from aurora_rl.models.sharding import gathered
from aurora_rl.rewards import Deferred
from aurora_rl.tasks.prompts import SEG_TOKEN


class MaskHead(Head):
    """Projector and mask decoder.

    projector = Linear(D, D) - ReLU - Linear(D, C), as in the authors' code.

    Args:
        hidden_size: D.
        config: the segmenter's config, see `models.heads.segmenters`.
    """

    name = "masks"
    token = SEG_TOKEN
    noun = "mask"
    outputs = ("sparse_prompt_embeddings", "mask_logits")
    no_columns = {"pred_masks": None, "mask_probs": None, "mask_counts": None}

    def __init__(self, hidden_size: int, config: dict[str, Any]) -> None:
        super().__init__(hidden_size, config)
        self.mask_decoder: Segmenter = build_segmenter(config)
        self.projector = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, self.mask_decoder.prompt_dim)
        )

    @classmethod
    def complete_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        return complete_segmenter_config(config)

    def load_pretrained(self) -> None:
        with gathered(self.mask_decoder.parameters()):
            self.mask_decoder.load_pretrained()

    def reset_parameters(self) -> None:
        self.mask_decoder.reset_parameters()
        for layer in self.projector:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def predict(self, states: Tensor, frames: FrameBatch | None = None) -> dict[str, Tensor]:
        """Decode every row's masks; the frames of a clip are read once for all of its rows.

        Returns:
            `sparse_prompt_embeddings` (B, C), prompts of the mask decoder, and with frames `mask_logits`
            (sum over rows of F_b, h, w), row after row.
        """
        prompts = self.projector(states.to(next(self.projector.parameters()).dtype))  # (B, C)
        if frames is None:
            return {"sparse_prompt_embeddings": prompts}
        mask_logits = self.mask_decoder(frames.frames, frames.by_frame(prompts))  # (N, G, h, w)
        return {"sparse_prompt_embeddings": prompts, "mask_logits": frames.by_row(mask_logits)}

    def rows(
        self,
        raw: Mapping[str, Tensor],
        frame_counts: Tensor,
        sizes: Sequence[tuple[int, int]],
        annotated_frames: Sequence[Sequence[int] | None] | None = None,
    ) -> list[Tensor]:
        """Return B mask logits (A_b, H, W) float32, each at the size of its own frames."""
        mask_logits, counts = annotated_only(raw["mask_logits"], frame_counts.tolist(), annotated_frames)
        if len(set(sizes)) == 1:  # one resize for the whole batch
            return list(self.mask_decoder.postprocess(mask_logits, sizes[0]).split(counts))
        rows = zip(mask_logits.split(counts), sizes, strict=True)
        return [self.mask_decoder.postprocess(row, size) for row, size in rows]

    def loss(
        self,
        rows: Sequence[Tensor],
        gt_masks: Sequence[Tensor | None],
        *,
        row_weights: Tensor | None = None,
        normalizer: Tensor | None = None,
        **options: Any,
    ) -> HeadLoss:
        losses = mask_loss(rows, gt_masks, row_weights=row_weights, normalizer=normalizer, **options)
        return HeadLoss(losses.total, {"mask_bce": losses.bce, "mask_dice": losses.dice})

    @classmethod
    def loss_options(cls, args: Any) -> dict[str, Any]:
        return {
            "bce_weight": args.mask_bce_weight,
            "dice_weight": args.mask_dice_weight,
            "dice_variant": args.dice_variant,
        }

    def columns(self, row: Tensor, gt_masks: Tensor | None, truth: Tensor | None) -> dict[str, Any]:
        return mask_columns(row, gt_masks, truth)

    def row_score(self, row: Tensor, truth: Tensor) -> float:
        """Return the IoU of the masks."""
        return mask_iou(row > 0, truth)

    def score_of_columns(self, columns: Mapping[str, Any], row: Tensor, truth: Tensor) -> float:
        return float(columns["mask_counts"].mask_iou)  # pixels are counted once


@torch.no_grad()
def mask_columns(mask_logits: Tensor, gt_masks: Tensor | None, truth: Tensor | None) -> dict[str, Any]:
    """Return `pred_masks`, `mask_counts` and `mask_probs`, which is computed when a reward function reads it.

    Args:
        mask_logits: (A, H, W) logits.
        gt_masks: (A, H, W) bool, on the CPU; None for a row without truth, which has no counts.
        truth: `gt_masks` on the logits' device.
    """
    predicted = mask_logits > 0  # p > 0.5
    pred_masks, counts = predicted.cpu(), None
    if gt_masks is not None and truth is not None:
        counts = count_masks(predicted, truth).on_cpu(pred_masks, gt_masks)
    probs = Deferred(lambda: mask_logits.detach().float().sigmoid().cpu())
    return {"pred_masks": pred_masks, "mask_probs": probs, "mask_counts": counts}
