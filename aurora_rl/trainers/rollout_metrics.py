"""Metrics of a batch of rollouts that GRPO logs beside TRL's: answers, masks and chains, by type of reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from aurora_rl.data.sample import AVSample
from aurora_rl.tasks.completions import ParsedCompletion
from aurora_rl.tasks.reference_segmentation import hear_score, see_score


def rollout_metrics(
    samples: Sequence[AVSample],
    parsed: Sequence[ParsedCompletion],
    iou: Sequence[float],
    answer_is_correct: Sequence[bool],
) -> Iterator[tuple[str, float]]:
    """Yield names and values of metrics: one of each kind for each completion that it applies to."""
    for sample, completion, value, correct in zip(samples, parsed, iou, answer_is_correct, strict=True):
        yield f"iou/{_kind(sample)}", value
        yield f"category/{_kind(sample)}", float(correct)
        if (see := see_score(completion, sample)) is not None:
            yield "chain/see", see
        if (hear := hear_score(completion, sample)) is not None:
            yield "chain/hear", hear


def reward_metrics(
    samples: Sequence[AVSample], rewards_per_func: torch.Tensor, weights: torch.Tensor
) -> Iterator[tuple[str, float]]:
    """Yield name and weighted sum of the rewards of each completion that any reward applies to.

    Args:
        samples: samples of the B completions.
        rewards_per_func: (B, number of reward functions) rewards; NaN where one does not apply.
        weights: (number of reward functions,) weights of the rewards.
    """
    totals = (rewards_per_func * weights).nansum(1).tolist()
    is_scored = (~rewards_per_func.isnan()).any(1).tolist()
    for sample, total, scored in zip(samples, totals, is_scored, strict=True):
        if scored:
            yield f"reward/{_kind(sample)}", total


def _kind(sample: AVSample) -> str:
    return sample.reference_type or ("null" if sample.is_null else "all")
