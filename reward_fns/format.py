"""Format reward: the completion has the form that the mask decoder and the other rewards read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aurora_rl.tasks.base import Answer
from aurora_rl.tasks.completions import ParsedCompletion
from aurora_rl.tasks.reference_segmentation import has_form, read_answers


class FormatReward:
    """The reward is 1.0 if the completion ends with "It is [SEG]." and holds exactly one `[SEG]`, else 0.0.

    Args:
        require_steps: whether the four steps must be there once each, in order, as well. After "Wait, let me
            reconsider." only the steps of the new chain count.

    Example: "the target is the drum. It is [SEG]." earns 0.0 from `format_reward`, because the steps are missing, and
    1.0 from `answer_format_reward`.

    >>> format_reward([None], ["the target is the drum. It is [SEG]."])
    [0.0]
    >>> answer_format_reward([None], ["the target is the drum. It is [SEG]."])
    [1.0]
    """

    reads = ParsedCompletion

    def __init__(self, *, require_steps: bool = True) -> None:
        self.require_steps = require_steps

    def __call__(
        self, prompts: list[Any], completions: list[Any], *, answers: Sequence[Answer] | None = None, **columns: Any
    ) -> list[float | None]:
        """Score each completion, which is parsed where `answers` is None; never None."""
        parsed = read_answers(completions, answers)
        return [float(has_form(answer, require_steps=self.require_steps)) for answer in parsed]


#: The reward of the structured chain of thought: all four steps and the answer.
format_reward = FormatReward()
#: The reward of answers without a chain of thought.
answer_format_reward = FormatReward(require_steps=False)
