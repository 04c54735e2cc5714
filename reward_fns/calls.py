"""The price of tools' calls inside a rollout, so that a policy calls where a call finds something out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def call_price_reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
    """Return minus the number of a rollout's calls, also of those that fail; its weight is the price of one call.

    With `reward_weights: [1.0, 0.2]` beside a reward of 1 for a right answer, a call pays where it makes the answer
    right in more than a fifth of the cases in which it would be wrong without.

    >>> call = {"type": "function", "function": {"name": "loudness", "arguments": {"start_s": 1, "end_s": 2}}}
    >>> turns = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "Silence."}]
    >>> call_price_reward([None] * 2, [[*turns, {"role": "assistant", "content": "silent"}], "silent"])
    [-1.0, 0.0]

    Args:
        prompts: not read.
        completions: chat messages of all turns, or text, which holds no call.
        **columns: not read.
    """
    return [0.0 - sum(map(_num_calls, messages_of(completion))) for completion in completions]


def messages_of(completion: str | Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return the messages of a completion; none of a text."""
    return () if isinstance(completion, str) else completion


def _num_calls(message: Mapping[str, Any]) -> int:
    return len(message.get("tool_calls") or ())
