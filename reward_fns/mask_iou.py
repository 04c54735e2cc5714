"""Mask rewards: how well the predicted masks cover the object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from aurora_rl.metrics import MaskCounts, count_masks


def mask_iou_reward(
    prompts: list[Any],
    completions: list[Any],
    *,
    pred_masks: list[Tensor | None],
    gt_masks: list[Tensor | None],
    mask_counts: Sequence[MaskCounts | None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Return the mean over frames of the IoU, or 1 - S where the truth is empty on all frames (`metrics.mask_iou`).

    Example: one frame of four pixels, two of them true, one of these and no other predicted: IoU = 1 / 2, reward 0.5.

    >>> import torch
    >>> gt_mask = torch.tensor([[[True, True], [False, False]]])
    >>> pred_mask = torch.tensor([[[True, False], [False, False]]])
    >>> [round(reward, 3) for reward in mask_iou_reward([None], [""], pred_masks=[pred_mask], gt_masks=[gt_mask])]
    [0.5]

    Args:
        prompts: not read.
        completions: not read.
        pred_masks: predicted masks of each completion, (F, H, W) bool; None if it holds no `[SEG]`.
        gt_masks: true masks of each completion, (F, H, W) bool; None for a row without true masks.
        mask_counts: pixel counts of each completion's masks, as far as they are known (the trainer counts them);
            counts of other masks are ignored.
        **columns: not read.

    Returns:
        Per completion a number in [0, 1]; None for a row without true masks. Without `[SEG]` it is 0.0 and not None,
        even where empty masks would be right: the model has not answered.
    """
    all_counts = _counted(pred_masks, gt_masks, mask_counts)
    return _where_true_masks_are_known([0.0 if counts is None else counts.mask_iou for counts in all_counts], gt_masks)


def authors_mask_iou_reward(
    prompts: list[Any],
    completions: list[Any],
    *,
    pred_masks: list[Tensor | None],
    gt_masks: list[Tensor | None],
    mask_counts: Sequence[MaskCounts | None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Score as the mask reward of the authors' release does: by the true-negative rate where the truth is empty.

    Example: empty truth and a false alarm of 2 % of the pixels still earns 0.98, where `mask_iou_reward` gives 0.859.

    >>> import torch
    >>> gt_mask = torch.zeros(1, 10, 10, dtype=torch.bool)
    >>> pred_mask = gt_mask.clone()
    >>> pred_mask[0, 0, :2] = True
    >>> masks = {"pred_masks": [pred_mask], "gt_masks": [gt_mask]}
    >>> [round(reward, 3) for reward in authors_mask_iou_reward([None], [""], **masks)]
    [0.98]
    >>> [round(reward, 3) for reward in mask_iou_reward([None], [""], **masks)]
    [0.859]

    It is here for comparison; arguments and result are those of `mask_iou_reward`.
    """
    all_counts = _counted(pred_masks, gt_masks, mask_counts)
    rewards = [0.0 if counts is None else float(counts.region_similarity.mean()) for counts in all_counts]
    return _where_true_masks_are_known(rewards, gt_masks)


def _counted(
    pred_masks: Sequence[Tensor | None], gt_masks: Sequence[Tensor | None], known: Sequence[MaskCounts | None] | None
) -> list[MaskCounts | None]:
    """Return the counts of each completion's masks; masks that another function has replaced are counted again."""
    all_counts: list[MaskCounts | None] = []
    for predicted, truth, counts in zip(pred_masks, gt_masks, known or [None] * len(pred_masks), strict=True):
        if predicted is None or truth is None:
            all_counts.append(None)
        elif counts is not None and counts.belong_to(predicted, truth):
            all_counts.append(counts)
        else:
            all_counts.append(count_masks(predicted, truth))
    return all_counts


def _where_true_masks_are_known(rewards: list[float], gt_masks: Sequence[Tensor | None]) -> list[float | None]:
    return [None if truth is None else reward for reward, truth in zip(rewards, gt_masks, strict=True)]
