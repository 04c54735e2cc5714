"""The parts that an estimate adds up, and the moments of a run at which each of them is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

ALWAYS, LOADING, TRAINING, SAMPLING, SCORING = "always", "loading", "training", "sampling", "scoring"
#: A backward pass comes to one after the other.
MASKS, LM_HEAD, LAYERS = f"{TRAINING}: masks", f"{TRAINING}: LM head", f"{TRAINING}: layers"
#: Moments of a run, which never meet.
MOMENTS = (LOADING, MASKS, LM_HEAD, LAYERS, SAMPLING, SCORING)


@dataclasses.dataclass(frozen=True)
class Part:
    """Bytes of one process.

    Attributes:
        name: what takes them.
        num_bytes: how many.
        when: always, while training, or at one of the `MOMENTS`.
    """

    name: str
    num_bytes: int
    when: str = ALWAYS


def fullest(parts: Iterable[Part]) -> list[Part]:
    """Those that are there at the fullest moment."""
    parts = list(parts)
    return max(([part for part in parts if _is_there(part, moment)] for moment in MOMENTS), key=sum_of)


def _is_there(part: Part, moment: str) -> bool:
    return part.when == ALWAYS or moment.startswith(part.when)


def sum_of(parts: Iterable[Part]) -> int:
    """Bytes of all of them together."""
    return sum(part.num_bytes for part in parts)
