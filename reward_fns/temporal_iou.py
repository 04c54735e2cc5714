"""Rewards of temporal grounding: how far the answered times overlap the true ones, and the completion's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aurora_rl.data.sample import AVSample
from aurora_rl.rewards import reads
from aurora_rl.tasks.base import Answer
from aurora_rl.tasks.completions import completion_text
from aurora_rl.tasks.temporal_grounding import TemporalGrounding, TimesAnswer, as_times, overlap


@reads(TimesAnswer)
def temporal_iou_reward(
    prompts: list[Any],
    completions: list[Any],
    *,
    sample: Sequence[AVSample],
    answers: Sequence[Answer] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Return the temporal intersection over union of the answered and the true times.

    Example: the answer 0.0-2.0 where the truth is 1.0-2.0 and 3.0-4.0 has one second in common of three: 0.333.
    "never" is 1.0 where the truth is never, else 0.0.

    Args:
        prompts: not read.
        completions: text or chat messages.
        sample: the row of each completion, whose column `times` is the truth.
        answers: the completions as the run's task has read them; None to read them as `TemporalGrounding` does.
        **columns: not read.

    Returns:
        Per completion a number in [0, 1], never None: what cannot be read is 0.0.
    """
    return [overlap(answer, row) for answer, row in zip(_read(completions, answers), sample, strict=True)]


@reads(TimesAnswer)
def times_format_reward(
    prompts: list[Any], completions: list[Any], *, answers: Sequence[Answer] | None = None, **columns: Any
) -> list[float | None]:
    """Return 1.0 if the completion has every part of the task's form once and in order, and readable times; else 0.0.

    >>> times_format_reward([None], ["Look: I see a drum.\\nListen: I hear a drum.\\nAnswer: 0.5-1.5"])
    [1.0]
    >>> times_format_reward([None], ["Look: I see a drum.\\nListen: I hear a drum.\\nAnswer: soon"])
    [0.0]

    Args:
        prompts: not read.
        completions: text or chat messages.
        answers: the completions as the run's task has read them; None to read them as `TemporalGrounding` does.
        **columns: not read.

    Returns:
        Per completion 1.0 or 0.0, never None.
    """
    return [float(each.has_form and each.spans is not None) for each in _read(completions, answers)]


def _read(completions: Sequence[Any], answers: Sequence[Answer] | None) -> list[TimesAnswer]:
    if answers is None:
        task = TemporalGrounding()
        return [task.parse(completion_text(completion)) for completion in completions]
    return [as_times(answer) for answer in answers]
