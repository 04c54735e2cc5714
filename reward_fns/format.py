"""Format reward: the completion has the form that the mask decoder and the other rewards read."""

from __future__ import annotations

from typing import Any

from aurora_rl.tasks.completions import completion_text, parse_completion


class FormatReward:
    """1.0 if the completion ends with "It is [SEG]." and holds exactly one `[SEG]`, else 0.0.

    Args:
        require_steps: whether the four steps must be there once each, in order, as well. A chain that was withdrawn
            ("Wait, let me reconsider.") and started anew is judged by the steps of the new one.

    Example: "the target is the drum. It is [SEG]." earns 0.0 from `format_reward`, which misses the steps, and 1.0 from
    `answer_format_reward`.

    >>> format_reward([None], ["the target is the drum. It is [SEG]."])
    [0.0]
    >>> answer_format_reward([None], ["the target is the drum. It is [SEG]."])
    [1.0]
    """

    def __init__(self, *, require_steps: bool = True) -> None:
        self.require_steps = require_steps

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        """Score each completion; never None."""
        return [self._score(completion_text(completion)) for completion in completions]

    def _score(self, text: str) -> float:
        parsed = parse_completion(text)
        answered = parsed.ends_with_seg and parsed.num_seg == 1
        return float(answered and (parsed.has_all_steps or not self.require_steps))


#: For the structured chain of thought: all four steps and the answer.
format_reward = FormatReward()
#: For answers without a chain of thought.
answer_format_reward = FormatReward(require_steps=False)
