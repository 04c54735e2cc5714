"""Rewards of boxes and points, worked by hand."""

import pytest
import torch

from reward_fns.box_iou import box_iou_reward
from reward_fns.point_in_mask import point_in_mask_reward

LEFT = torch.tensor([[[True, False]]])
NOTHING = torch.zeros(1, 1, 2, dtype=torch.bool)


def box_iou(gt_masks: torch.Tensor | None, box: list[float] | None, presence: float = 1.0) -> float | None:
    boxes = None if box is None else torch.tensor([box])
    columns = {"pred_boxes": [boxes], "box_presence": [None if box is None else torch.tensor([presence])]}
    return box_iou_reward([None], [""], gt_masks=[gt_masks], **columns)[0]


def point(gt_masks: torch.Tensor | None, place: list[float] | None) -> float | None:
    points = None if place is None else torch.tensor([place])
    return point_in_mask_reward([None], [""], pred_points=[points], gt_masks=[gt_masks])[0]


def test_box_reward_is_the_iou_or_the_doubt_about_an_empty_frame():
    assert box_iou(LEFT, [0.0, 0.0, 0.5, 1.0]) == 1.0
    assert box_iou(LEFT, [0.0, 0.0, 1.0, 1.0], presence=0.1) == 0.5  # the presence counts on empty frames alone
    assert box_iou(NOTHING, [0.0, 0.0, 1.0, 1.0], presence=0.25) == 0.75


def test_point_reward_applies_where_the_object_is():
    assert point(LEFT, [0.25, 0.5]) == 1.0
    assert point(LEFT, [0.75, 0.5]) == 0.0
    assert point(NOTHING, [0.25, 0.5]) is None
    assert point(torch.cat([LEFT, NOTHING]), None) == 0.0


@pytest.mark.parametrize("reward", [box_iou, point])
def test_no_token_earns_nothing_and_a_row_without_truth_has_no_reward(reward):
    assert reward(LEFT, None) == 0.0
    assert reward(None, [0.0, 0.0, 1.0, 1.0]) is None
