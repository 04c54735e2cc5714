"""The masks of rollouts on their way to the rewards: counted once, where they are, and fetched as bits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from aurora_rl import metrics
from aurora_rl.models.heads import masks as mask_head
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from reward_fns.mask_iou import authors_mask_iou_reward, mask_iou_reward
from tests.trainers.conftest import bright_masks

MakeGRPO = Callable[..., AuroraGRPOTrainer]
Rollout = Callable[..., dict[str, Any]]
MASK_REWARDS = [
    "reward_fns.mask_iou:mask_iou_reward",
    "reward_fns.mask_iou:authors_mask_iou_reward",
    "reward_fns.reasoning_consistency:reasoning_consistency_reward",
]


class Recorder:
    """A reward that keeps its columns and reads none."""

    def __init__(self) -> None:
        self.columns: dict[str, Any] = {}

    def __call__(self, completions: list, **columns: Any) -> list[float]:
        self.columns = columns
        return [0.0] * len(completions)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Frames of every count of pixels from now on."""
    frames: list[int] = []
    count = metrics._pixels_by_frame
    monkeypatch.setattr(metrics, "_pixels_by_frame", lambda masks: frames.append(len(masks)) or count(masks))
    return frames


def test_rewards_and_curves_count_each_completion_with_seg_once(
    make_grpo: MakeGRPO, rollout: Rollout, counted: list[int]
) -> None:
    trainer = make_grpo(rewards=MASK_REWARDS)
    inputs = rollout(trainer, 3)  # six completions, the third without `[SEG]`
    assert inputs["mask_weights"].shape == (6,)
    assert counted == [4, 4, 4] * 5, "masks, truth and both, for five completions"


def test_probabilities_are_not_computed_unless_a_reward_reads_them(
    make_grpo: MakeGRPO, rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    sigmoids: list[tuple[int, ...]] = []
    sigmoid = torch.Tensor.sigmoid
    monkeypatch.setattr(torch.Tensor, "sigmoid", lambda x: sigmoids.append(tuple(x.shape)) or sigmoid(x))
    reward = Recorder()
    rollout(make_grpo(rewards=[*MASK_REWARDS, reward]), 3)
    at_own_size = [shape for shape in sigmoids if shape == (4, 64, 64)]
    assert not at_own_size
    assert [probs is None for probs in reward.columns["mask_probs"]] == [False, False, True, False, False, False]
    assert len([shape for shape in sigmoids if shape == (4, 64, 64)]) == 5


def test_rewards_equal_those_of_thresholded_probabilities(make_grpo: MakeGRPO, rollout: Rollout) -> None:
    reward = Recorder()
    trainer = make_grpo(rewards=[reward])
    bright_masks(trainer.model)
    rollout(trainer, 3)
    probs, truth = reward.columns["mask_probs"], reward.columns["gt_masks"]
    thresholded = [None if x is None else x.cpu().float() > 0.5 for x in probs]
    assert any(masks is not None and masks.any() and not masks.all() for masks in thresholded)
    for func in (mask_iou_reward, authors_mask_iou_reward):
        expected = func(["p"] * 6, ["c"] * 6, pred_masks=thresholded, gt_masks=truth)
        given = func(completions=["c"] * 6, **reward.columns)
        assert given == pytest.approx(expected, abs=1e-6)


def test_masks_reach_the_rewards_as_bits_in_main_memory(make_grpo: MakeGRPO, rollout: Rollout) -> None:
    reward = Recorder()
    rollout(make_grpo(script="gold", rewards=[reward]), 2)
    for masks, counts in zip(reward.columns["pred_masks"], reward.columns["mask_counts"], strict=True):
        assert masks.dtype == torch.bool and masks.device.type == "cpu"
        assert counts.predicted.device.type == "cpu" and counts.predicted.tolist() == masks.sum((1, 2)).tolist()


def test_a_truth_goes_to_the_masks_device_once_for_all_copies_of_a_row(
    make_grpo: MakeGRPO, rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    truths: set[int] = set()
    columns_of = mask_head.mask_columns

    def watched(logits: torch.Tensor, gt_masks: torch.Tensor, truth: torch.Tensor) -> dict[str, Any]:
        truths.add(id(truth))
        return columns_of(logits, gt_masks, truth)

    monkeypatch.setattr(mask_head, "mask_columns", watched)
    rollout(make_grpo(script="gold"), 2)
    assert len(truths) == 2
