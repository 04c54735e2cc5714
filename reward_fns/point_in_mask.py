"""Point reward: whether the predicted point lies on the object."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from aurora_rl.box_metrics import points_in_masks


def point_in_mask_reward(
    prompts: list[Any],
    completions: list[Any],
    *,
    pred_points: list[Tensor | None],
    gt_masks: list[Tensor | None],
    **columns: Any,
) -> list[float | None]:
    """Return the share of the frames with the object whose point lies in its mask.

    Example: the object is in the first two of three frames, and one of these two points lies on it: reward 0.5.

    >>> import torch
    >>> gt_mask = torch.tensor([[[True, False]], [[True, False]], [[False, False]]])
    >>> points = torch.tensor([[0.25, 0.5], [0.75, 0.5], [0.25, 0.5]])
    >>> point_in_mask_reward([None], [""], pred_points=[points], gt_masks=[gt_mask])
    [0.5]

    Args:
        prompts: not read.
        completions: not read.
        pred_points: points of each completion, (A, 2) x and y in shares of the frame; None if it holds no `[BOX]`.
        gt_masks: true masks of the annotated frames, (A, H, W) bool; None for a row without truth.
        **columns: not read.

    Returns:
        Per completion a number in [0, 1]; None where no annotated frame shows the object, 0.0 without `[BOX]`.
    """
    rewards: list[float | None] = []
    for points, truth in zip(pred_points, gt_masks, strict=True):
        is_there = None if truth is None else truth.flatten(1).any(1)
        if truth is None or is_there is None or not is_there.any():
            rewards.append(None)
        elif points is None:
            rewards.append(0.0)
        else:
            rewards.append(float(points_in_masks(points, truth)[is_there].float().mean()))
    return rewards
