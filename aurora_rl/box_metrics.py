"""Boxes, points and presence against the truth, which true masks hold: pure functions for losses, rewards, evaluation.

A box is left, top, right and bottom in shares of the frame's width and height, from the top left.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: A predicted box is a hit if its IoU is above this (the "0.5" of PASCAL VOC).
HIT_IOU = 0.5
#: An object is said to be in a frame if its probability is above this.
PRESENCE_THRESHOLD = 0.5


def boxes_of_masks(masks: Tensor) -> Tensor:
    """Return the smallest box around each mask.

    Args:
        masks: (F, H, W) bool.

    Returns:
        (F, 4) float32; zeros for an empty mask.

    >>> boxes_of_masks(torch.tensor([[[False, True], [False, True]]])).tolist()
    [[0.5, 0.0, 1.0, 1.0]]
    """
    sides = []
    for axis in (-2, -1):  # columns, then rows, that hold a pixel
        holds = masks.any(axis)  # (F, L)
        length = holds.size(-1)
        places = torch.arange(length, device=masks.device)
        first = torch.where(holds, places, length).amin(-1)
        end = torch.where(holds, places + 1, 0).amax(-1)
        sides.append(torch.stack([first, end]).float() / length)
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], dim=-1) * masks.flatten(1).any(1)[:, None]


def box_overlap(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and generalised IoU of each pair of boxes (Rezatofighi et al. 2019).

    GIoU = IoU - (C - union) / C, where C is the area of the smallest box around both.

    Args:
        boxes: (F, 4).
        others: (F, 4).

    Returns:
        (F,) IoU in [0, 1] and (F,) GIoU in [-1, 1], in the boxes' dtype; 0 and -1 for two empty boxes at two places.

    >>> iou, giou = box_overlap(torch.tensor([[0.0, 0.0, 0.5, 1.0]]), torch.tensor([[0.5, 0.0, 1.0, 0.5]]))
    >>> iou.tolist(), giou.tolist()
    ([0.0], [-0.25])
    """
    both = _area(torch.cat([torch.maximum(boxes[:, :2], others[:, :2]), torch.minimum(boxes[:, 2:], others[:, 2:])], 1))
    around = _area(
        torch.cat([torch.minimum(boxes[:, :2], others[:, :2]), torch.maximum(boxes[:, 2:], others[:, 2:])], 1)
    )
    union = _area(boxes) + _area(others) - both
    least = torch.finfo(boxes.dtype).eps
    iou = both / union.clamp(min=least)
    return iou, iou - (around - union) / around.clamp(min=least)


def box_quality(boxes: Tensor, presence: Tensor, gt_masks: Tensor) -> float:
    """Return the mean over frames of the box's IoU, or of 1 - presence where the truth is empty.

    Args:
        boxes: (F, 4).
        presence: (F,) probabilities.
        gt_masks: (F, H, W) bool.

    Raises:
        ValueError: if the numbers of frames differ.
    """
    _check_frames(boxes, presence, gt_masks)
    iou, _ = box_overlap(boxes.float(), boxes_of_masks(gt_masks).to(boxes.device))
    return float(torch.where(gt_masks.flatten(1).any(1), iou, 1 - presence.float()).mean())


def points_in_masks(points: Tensor, gt_masks: Tensor) -> Tensor:
    """Tell for each frame whether the point lies in the mask, (F,) bool.

    Args:
        points: (F, 2), x and y in shares of the frame's width and height; 1 counts to the last pixel.
        gt_masks: (F, H, W) bool.
    """
    if len(points) != len(gt_masks):
        raise ValueError(f"points of {len(points)} frames for gt_masks {tuple(gt_masks.shape)}, expected (F, H, W)")
    height, width = gt_masks.shape[-2:]
    column = (points[:, 0] * width).long().clamp(0, width - 1)
    row = (points[:, 1] * height).long().clamp(0, height - 1)
    return gt_masks[torch.arange(len(points), device=gt_masks.device), row, column]


def box_scores(boxes: Tensor, presence: Tensor, points: Tensor, gt_masks: Tensor) -> dict[str, float | None]:
    """Score one row's boxes, presence and points; the columns `pred_boxes`, `box_presence`, `pred_points`.

    Args:
        boxes: (F, 4).
        presence: (F,) probabilities.
        points: (F, 2).
        gt_masks: (F, H, W) bool, true masks of the annotated frames.

    Returns:
        `box_iou`: mean IoU over the frames with the object; `box_hits`: share of these frames with an IoU above 0.5;
        `point_in_mask`: share of these frames whose point lies in the mask; all three None without such a frame.
        `presence`: share of all frames in which the object is rightly said to be there or not.

    Raises:
        ValueError: if the numbers of frames differ.
    """
    _check_frames(boxes, presence, gt_masks)
    is_there = gt_masks.flatten(1).any(1)
    iou, _ = box_overlap(boxes.float(), boxes_of_masks(gt_masks))
    told = ((presence > PRESENCE_THRESHOLD) == is_there).float().mean().item()
    if not is_there.any():
        return {"box_iou": None, "box_hits": None, "point_in_mask": None, "presence": told}
    inside = points_in_masks(points, gt_masks)
    return {
        "box_iou": iou[is_there].mean().item(),
        "box_hits": (iou[is_there] > HIT_IOU).float().mean().item(),
        "point_in_mask": inside[is_there].float().mean().item(),
        "presence": told,
    }


def _area(boxes: Tensor) -> Tensor:
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    return sides[:, 0] * sides[:, 1]


def _check_frames(boxes: Tensor, presence: Tensor, gt_masks: Tensor) -> None:
    if boxes.shape != (len(gt_masks), 4) or presence.shape != (len(gt_masks),) or gt_masks.ndim != 3:
        raise ValueError(
            f"boxes {tuple(boxes.shape)} and presence {tuple(presence.shape)} do not fit gt_masks "
            f"{tuple(gt_masks.shape)}: expected (F, 4), (F,) and (F, H, W)"
        )
