"""What chosen sets of tools are worth, beside the sets that need no policy: none, all, random, fixed, the best of each.

All is read from a tool table (`data.tool_table`); a value of a question is the share of right answers, 0 or 1 for one
set. Questions of several seeds are pooled, and intervals are over questions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from aurora_rl.data.tool_table import Rights
from aurora_rl.evaluation.intervals import Interval, bootstrap_interval


@dataclasses.dataclass(frozen=True)
class ChosenSet:
    """The set that a policy chose for a question.

    Attributes:
        question: key of the question.
        rights: whether the reasoner is right, by the set.
        chosen: the set; None where the answer cannot be read.
    """

    question: str
    rights: Rights
    chosen: tuple[int, ...] | None

    @property
    def is_right(self) -> bool:
        """Whether the reasoner is right with it; unreadable is wrong."""
        return self.chosen is not None and self.rights[self.chosen]


def best_fixed_set(rows: Sequence[ChosenSet]) -> tuple[int, ...]:
    """Return the one set that is right about most of these questions; the smallest of several."""
    return max(sorted(rows[0].rights, key=len), key=lambda chosen: sum(row.rights[chosen] for row in rows))


def accuracies(rows: Sequence[ChosenSet]) -> dict[str, list[float]]:
    """Return each question's value under the policy and without one, by the name of the choice.

    "random" is the mean over all sets. "best fixed set" and "best of each" are chosen by the truth of these very
    questions: they are bounds, not methods.
    """
    fixed, everything = best_fixed_set(rows), max(rows[0].rights, key=len)
    return {
        "the policy's tools": [float(row.is_right) for row in rows],
        "no tool": [float(row.rights[()]) for row in rows],
        "all tools": [float(row.rights[everything]) for row in rows],
        "random tools": [sum(row.rights.values()) / len(row.rights) for row in rows],
        "best fixed set": [float(row.rights[fixed]) for row in rows],
        "best of each question": [float(any(row.rights.values())) for row in rows],
    }


def gained_share(rows: Sequence[ChosenSet]) -> float:
    """Return (accuracy - none) / (best of each - none), how much of what tools can give the policy takes."""
    policy, none, best = (
        sum(accuracies(rows)[name]) for name in ("the policy's tools", "no tool", "best of each question")
    )
    return (policy - none) / (best - none) if best > none else 0.0


def choice_counts(rows: Sequence[ChosenSet]) -> dict[str, float]:
    """Return shares of readable, rescued (wrong without tools, right with them) and broken rows; tools a question."""
    number = len(rows)
    return {
        "readable": sum(row.chosen is not None for row in rows) / number,
        "rescued": sum(row.is_right and not row.rights[()] for row in rows) / number,
        "broken": sum(not row.is_right and row.rights[()] for row in rows) / number,
        "tools a question": sum(len(row.chosen or ()) for row in rows) / number,
    }


def call_shares(rows: Sequence[ChosenSet]) -> list[float]:
    """Return the share of questions for which each tool is called, by its number."""
    count = max(map(len, rows[0].rights))
    return [sum(tool in (row.chosen or ()) for row in rows) / len(rows) for tool in range(count)]


def interval(values: Sequence[float], rows: Sequence[ChosenSet]) -> Interval:
    """Compute a mean with its interval over questions, each with all of its seeds."""
    return bootstrap_interval(list(values), clips=[row.question for row in rows])
