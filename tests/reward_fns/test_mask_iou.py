import math

import pytest
import torch

from aurora_rl.metrics import count_masks
from reward_fns.mask_iou import authors_mask_iou_reward, mask_iou_reward

EMPTY = torch.zeros(2, 10, 10, dtype=torch.bool)
OBJECT = EMPTY.clone()
OBJECT[:, :2, 0] = True  # 2 % of the pixels
HALF = EMPTY.clone()
HALF[:, 0, 0] = True


def _reward(reward_func, pred_masks, gt_masks):
    return reward_func(prompts=["p"], completions=["c"], pred_masks=[pred_masks], gt_masks=[gt_masks], uid=["a"])[0]


@pytest.mark.parametrize("reward_func", [mask_iou_reward, authors_mask_iou_reward])
def test_masks_of_an_object_earn_their_iou(reward_func):
    assert _reward(reward_func, OBJECT, OBJECT) == pytest.approx(1.0)
    assert _reward(reward_func, HALF, OBJECT) == pytest.approx(0.5)
    assert _reward(reward_func, EMPTY, OBJECT) == 0.0


@pytest.mark.parametrize("reward_func", [mask_iou_reward, authors_mask_iou_reward])
def test_a_completion_without_seg_earns_zero_even_for_a_null_reference(reward_func):
    assert _reward(reward_func, None, OBJECT) == 0.0
    assert _reward(reward_func, None, EMPTY) == 0.0


def test_empty_masks_for_a_null_reference_earn_one():
    assert _reward(mask_iou_reward, EMPTY, EMPTY) == 1.0


def test_a_false_alarm_of_two_percent_costs_its_root():
    assert _reward(mask_iou_reward, OBJECT, EMPTY) == pytest.approx(1 - math.sqrt(0.02))
    assert _reward(authors_mask_iou_reward, OBJECT, EMPTY) == pytest.approx(0.98)


def test_masks_of_one_frame_for_a_clip_of_two_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 10, 10\)"):
        _reward(mask_iou_reward, OBJECT[:1], OBJECT)


@pytest.mark.parametrize("reward_func", [mask_iou_reward, authors_mask_iou_reward])
def test_counts_are_taken_from_the_trainer_for_its_own_masks_only(reward_func, monkeypatch):
    counts = [count_masks(HALF, OBJECT), None]
    columns = {"gt_masks": [OBJECT, OBJECT], "mask_counts": counts}
    counted = []
    monkeypatch.setattr("reward_fns.mask_iou.count_masks", lambda *masks: counted.append(masks) or count_masks(*masks))
    rewards = reward_func(prompts=["p"] * 2, completions=["c"] * 2, pred_masks=[HALF, None], **columns)
    assert rewards == [pytest.approx(0.5), 0.0] and not counted
    changed = [OBJECT.clone(), OBJECT]  # by a function of a user's own, which hands all columns on
    rewards = reward_func(prompts=["p"] * 2, completions=["c"] * 2, pred_masks=changed, **columns)
    assert rewards == [pytest.approx(1.0), pytest.approx(1.0)] and len(counted) == 2
