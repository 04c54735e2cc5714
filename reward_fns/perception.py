"""Perception reward (optional): the chain names exactly what is in view and what sounds.

It needs the true lists, which the synthetic benchmark has. It keeps the look and listen steps honest, which decay under
rewards on the final answer alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aurora_rl.rewards import reads
from aurora_rl.tasks.base import Answer
from aurora_rl.tasks.completions import ParsedCompletion, normalise_category
from aurora_rl.tasks.reference_segmentation import read_answers


@reads(ParsedCompletion)
def perception_reward(
    prompts: list[Any],
    completions: list[Any],
    *,
    seen: list[Sequence[str] | None],
    heard: list[Sequence[str] | None],
    answers: Sequence[Answer] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Return the mean of two F1 scores: of the categories said to be seen, and of those said to be heard, in order.

    Example: a drum and a bell are in view and only the drum sounds; "I see a drum. I hear a drum." earns
    (2/3 + 1) / 2 = 0.833.

    >>> rewards = perception_reward(
    ...     [None], ["Look: I see a drum.\\nListen: I hear a drum."], seen=[["drum", "bell"]], heard=[["drum"]]
    ... )
    >>> [round(reward, 3) for reward in rewards]
    [0.833]

    Args:
        prompts: not read.
        completions: text or chat messages.
        seen: the true categories in view of each row, None where unknown.
        heard: the true categories that sound, in order, None where unknown.
        answers: the completions as reference segmentation reads them; None to read them here.
        **columns: not read.

    Returns:
        Per completion a number in [0, 1]; None where the truth is unknown. A claim left out counts 0.
    """
    return [
        _score(answer, true_seen, true_heard)
        for answer, true_seen, true_heard in zip(read_answers(completions, answers), seen, heard, strict=True)
    ]


def _score(parsed: ParsedCompletion, true_seen: Sequence[str] | None, true_heard: Sequence[str] | None) -> float | None:
    if true_seen is None or true_heard is None:
        return None
    seen = None if parsed.seen is None else sorted(parsed.seen)
    seen_f1 = _list_f1(seen, sorted(map(normalise_category, true_seen)))
    heard_f1 = _list_f1(parsed.heard, list(map(normalise_category, true_heard)))
    return (seen_f1 + heard_f1) / 2


def _list_f1(claims: Sequence[str] | None, truth: Sequence[str]) -> float:
    """Return F1 of two sequences by their longest common subsequence; 1 if both are empty."""
    if claims is None:
        return 0.0
    if not claims and not truth:
        return 1.0
    return 2 * _common_length(claims, truth) / (len(claims) + len(truth))


def _common_length(left: Sequence[str], right: Sequence[str]) -> int:
    """Return the length of the longest common subsequence."""
    lengths = [0] * (len(right) + 1)
    for item in left:
        above = lengths.copy()
        for column, other in enumerate(right):
            lengths[column + 1] = above[column] + 1 if item == other else max(above[column + 1], lengths[column])
    return lengths[-1]
