"""Box reward: how well the predicted boxes fit the object."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from aurora_rl.box_metrics import box_quality


def box_iou_reward(
    prompts: list[Any],
    completions: list[Any],
    *,
    pred_boxes: list[Tensor | None],
    box_presence: list[Tensor | None],
    gt_masks: list[Tensor | None],
    **columns: Any,
) -> list[float | None]:
    """Return the mean over the annotated frames of the box's IoU, or 1 - presence where the truth is empty.

    Example: two frames; in the first the box covers the left half and the object the whole frame (IoU 0.5), the second
    is empty and the object is said to be there with a probability of 0.2 (0.8): reward 0.65.

    >>> import torch
    >>> gt_mask = torch.tensor([[[True, True]], [[False, False]]])
    >>> boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0]])
    >>> presence = torch.tensor([0.9, 0.2])
    >>> rewards = box_iou_reward([None], [""], pred_boxes=[boxes], box_presence=[presence], gt_masks=[gt_mask])
    >>> [round(reward, 3) for reward in rewards]
    [0.65]

    Args:
        prompts: not read.
        completions: not read.
        pred_boxes: boxes of each completion, (A, 4) left, top, right, bottom in shares of the frame; None if it holds
            no `[BOX]`.
        box_presence: probabilities (A,) of the object's being in each frame; None without `[BOX]`.
        gt_masks: true masks of the annotated frames, (A, H, W) bool; None for a row without truth.
        **columns: not read.

    Returns:
        Per completion a number in [0, 1]; 0.0 without `[BOX]`, None for a row without truth.
    """
    rewards: list[float | None] = []
    for boxes, presence, truth in zip(pred_boxes, box_presence, gt_masks, strict=True):
        if truth is None:
            rewards.append(None)
        elif boxes is None or presence is None:
            rewards.append(0.0)
        else:
            rewards.append(box_quality(boxes, presence, truth))
    return rewards
