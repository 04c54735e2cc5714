"""Metrics of a batch of rollouts that GRPO logs beside TRL's: answers, masks and chains, by type of reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from aurora_rl.data.curriculum import dead_share, rate_of
from aurora_rl.data.sample import AVSample
from aurora_rl.models.other_media import GAIN_COLUMNS
from aurora_rl.tasks.base import Task


def completion_columns(rows: Sequence[Mapping[str, Any]], noun: str | None) -> dict[str, list[Any]]:
    """Return the columns that TRL's table of completions has beside its own.

    Args:
        rows: B rows of `grounded_rollouts.reward_rows`.
        noun: `Head.noun`; None without a head.
    """
    samples = [row["sample"] for row in rows]
    columns = {
        "uid": [sample.uid for sample in samples],
        "reference": [sample.reference for sample in samples],
        "category": [sample.category for sample in samples],
    }
    return columns if noun is None else columns | {f"{noun}_iou": [row["head_score"] for row in rows]}


def batch_metrics(
    task_of: Callable[[AVSample], Task],
    rows: Sequence[Mapping[str, Any]],
    rewards_per_func: torch.Tensor,
    weights: torch.Tensor,
    num_generations: int,
) -> Iterator[tuple[str, float]]:
    """Yield names and values of all metrics of a batch, see `rollout_metrics` and `reward_metrics`."""
    yield from rollout_metrics(task_of, rows, num_generations)
    yield from reward_metrics(rows, rewards_per_func, weights.to(rewards_per_func.device))


def rollout_metrics(
    task_of: Callable[[AVSample], Task], rows: Sequence[Mapping[str, Any]], num_generations: int
) -> Iterator[tuple[str, float]]:
    """Yield names and values of metrics, one of each kind for each completion that it applies to.

    Args:
        task_of: function that returns a row's task, whose `curves` name the scores of an answer's words.
        rows: B rows of `grounded_rollouts.reward_rows`.
        num_generations: G, completions of a prompt.
    """
    for row in rows:
        sample: AVSample = row["sample"]
        task = task_of(sample)
        rate = rate_of(sample)
        if rate is not None and rate.tries >= num_generations:  # of accuracy alone; TRL logs frac_reward_zero_std
            yield "dead_groups/predicted", dead_share(rate, num_generations)
        for column in GAIN_COLUMNS:
            if row.get(column) is not None:
                yield column, row[column]
                yield f"{column}/{_kind(sample)}", row[column]
        if row.get("head_score") is not None:
            yield "iou", row["head_score"]
            yield f"iou/{_kind(sample)}", row["head_score"]
            yield from _of_set(sample, "iou", row["head_score"])
        for name, score in task.text_scores(row["answers"], sample).items():
            if score is not None and name in task.curves:
                yield task.curves[name].format(kind=_kind(sample)), score
                yield from _of_set(sample, name, score)


def reward_metrics(
    rows: Sequence[Mapping[str, Any]], rewards_per_func: torch.Tensor, weights: torch.Tensor
) -> Iterator[tuple[str, float]]:
    """Yield name and weighted sum of the rewards of each completion that any reward applies to.

    Args:
        rows: B rows of `grounded_rollouts.reward_rows`.
        rewards_per_func: (B, number of reward functions) rewards; NaN where one does not apply.
        weights: (number of reward functions,) weights of the rewards.
    """
    totals = (rewards_per_func * weights).nansum(1).tolist()
    is_scored = (~rewards_per_func.isnan()).any(1).tolist()
    for row, total, scored in zip(rows, totals, is_scored, strict=True):
        if scored:
            yield f"reward/{_kind(row['sample'])}", total
            yield from _of_set(row["sample"], "reward", total)


def _of_set(sample: AVSample, name: str, value: float) -> Iterator[tuple[str, float]]:
    """Yield the metric of a row's data set in a run on several of them: `dataset/<its name>/<name>`."""
    if sample.dataset:
        yield f"dataset/{sample.dataset}/{name}", value


def _kind(sample: AVSample) -> str:
    return sample.reference_type or ("null" if sample.is_null else "all")
