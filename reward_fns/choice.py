"""Rewards of multiple choice: the answer is the right option, and the completion has the task's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aurora_rl.rewards import reads
from aurora_rl.tasks.base import Answer
from aurora_rl.tasks.completions import completion_text
from aurora_rl.tasks.matchers import is_same_option
from aurora_rl.tasks.multiple_choice import ChoiceAnswer, MultipleChoice, as_choice


@reads(ChoiceAnswer)
def choice_accuracy_reward(
    prompts: list[Any],
    completions: list[Any],
    *,
    choices: list[Sequence[str]],
    answer: list[str],
    answers: Sequence[Answer] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Return 1.0 if the answer is the right option's letter or text, else 0.0.

    Exactly one text must be marked as the answer, and it must be a letter or an option's text: "This is a bell" is
    neither, although it holds an "a".

    >>> choice_accuracy_reward([None], ["Answer: B"], choices=[["drum", "bell"]], answer=["bell"])
    [1.0]

    Args:
        prompts: not read.
        completions: text or chat messages.
        choices: the options of each row.
        answer: the right option of each row.
        answers: the completions as the run's task has read them; None to read them as `MultipleChoice` does.
        **columns: not read.

    Returns:
        Per completion 1.0 or 0.0, never None: what cannot be read is wrong.
    """
    read = _read(completions, answers)
    return [
        float(is_same_option(options, each.choose(options), list(options).index(truth)))
        for each, options, truth in zip(read, choices, answer, strict=True)
    ]


@reads(ChoiceAnswer)
def choice_format_reward(
    prompts: list[Any], completions: list[Any], *, answers: Sequence[Answer] | None = None, **columns: Any
) -> list[float | None]:
    """Return 1.0 if the completion has every part of the task's form once and in order, else 0.0.

    >>> choice_format_reward([None], ["Look: I see a drum.\\nListen: I hear a drum.\\nAnswer: A"])
    [1.0]
    >>> choice_format_reward([None], ["Answer: A"])
    [0.0]

    Args:
        prompts: not read.
        completions: text or chat messages.
        answers: the completions as the run's task has read them; None to read them as `MultipleChoice` does.
        **columns: not read.

    Returns:
        Per completion 1.0 or 0.0, never None.
    """
    return [float(each.has_form) for each in _read(completions, answers)]


def _read(completions: Sequence[Any], answers: Sequence[Answer] | None) -> list[ChoiceAnswer]:
    if answers is None:
        task = MultipleChoice()
        return [task.parse(completion_text(completion)) for completion in completions]
    return [as_choice(answer) for answer in answers]
