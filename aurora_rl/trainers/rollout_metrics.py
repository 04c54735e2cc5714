"""Metrics of a batch of rollouts that GRPO logs beside TRL's: answers, masks and chains, by type of reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from aurora_rl.data.sample import AVSample
from aurora_rl.tasks.base import Answer, Task


def rollout_metrics(
    task: Task, samples: Sequence[AVSample], answers: Sequence[Answer], iou: Sequence[float | None]
) -> Iterator[tuple[str, float]]:
    """Yield names and values of metrics, one of each kind for each completion that it applies to.

    Args:
        task: the task, whose `curves` name the scores of an answer's words.
        samples: samples of the B completions.
        answers: the completions as the task reads them.
        iou: IoU of each completion's masks; None for a row without true masks.
    """
    for sample, answer, value in zip(samples, answers, iou, strict=True):
        if value is not None:
            yield f"iou/{_kind(sample)}", value
        for name, score in task.text_scores(answer, sample).items():
            if score is not None and name in task.curves:
                yield task.curves[name].format(kind=_kind(sample)), score


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
