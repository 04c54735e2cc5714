"""How several agents come to one opinion: rounds of anonymous votes, after the Delphi method. No model, no clock.

In the first round each agent votes alone. While too few agree, each is shown all votes and reasons of the last round,
without names, and votes again; after the last round the majority decides.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

#: Share of equal votes that counts as agreement.
QUORUM = 2 / 3


@dataclasses.dataclass(frozen=True)
class Vote:
    """One agent's vote in one round.

    Attributes:
        label: what it votes for.
        reason: why, in its words; other agents are shown it.
    """

    label: str
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Consensus:
    """What a vote came to.

    Attributes:
        label: what was decided.
        share: share of the last round's votes for it.
        rounds: votes of each round, in order.
    """

    label: str
    share: float
    rounds: tuple[tuple[Vote, ...], ...]


def majority(votes: Sequence[Vote], severity: Sequence[str] = ()) -> tuple[str, float]:
    """Return the label with most votes and its share.

    >>> majority([Vote("easy"), Vote("hard")], severity=["easy", "hard"])
    ('hard', 0.5)

    Args:
        votes: votes of one round, at least one.
        severity: labels from the mildest to the gravest; of labels with equally many votes the gravest wins. Labels
            that are not named are milder than all, and the first of them that was voted for wins.
    """
    counts = Counter(vote.label for vote in votes)
    rank = {label: place for place, label in enumerate(severity)}
    first = {vote.label: -number for number, vote in reversed(list(enumerate(votes)))}
    label = max(counts, key=lambda each: (counts[each], rank.get(each, -1), first[each]))
    return label, counts[label] / len(votes)


def has_quorum(votes: Sequence[Vote]) -> bool:
    """Tell whether two thirds of the votes are for one label."""
    return majority(votes)[1] >= QUORUM - 1e-9


async def delphi(
    ask: Callable[[Sequence[Vote]], Awaitable[Sequence[Vote]]],
    *,
    max_rounds: int = 3,
    severity: Sequence[str] = (),
) -> Consensus:
    """Let agents vote until they agree, or the rounds are over.

    Args:
        ask: lets all agents vote, of the votes of the last round, which are none in the first.
        max_rounds: largest number of rounds.
        severity: see `majority`.

    Raises:
        ValueError: if there is no round, or nobody votes.
    """
    if max_rounds < 1:
        raise ValueError(f"max_rounds is {max_rounds}: expected one at least")
    rounds: list[tuple[Vote, ...]] = []
    while not rounds or (len(rounds) < max_rounds and not has_quorum(rounds[-1])):
        votes = tuple(await ask(rounds[-1] if rounds else ()))
        if not votes:
            raise ValueError("nobody voted: a consensus needs one agent at least")
        rounds.append(votes)
    label, share = majority(rounds[-1], severity)
    return Consensus(label, share, tuple(rounds))
