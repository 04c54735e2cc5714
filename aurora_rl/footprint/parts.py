"""The parts that an estimate adds up, and the moments of a run at which each takes memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

ALWAYS, LOADING, TRAINING, SAMPLING, SCORING = "always", "loading", "training", "sampling", "scoring"
#: Moments of a backward pass, one after the other.
MASKS, LM_HEAD, LAYERS = f"{TRAINING}: masks", f"{TRAINING}: LM head", f"{TRAINING}: layers"
#: Moments of a run, of which no two are at the same time.
MOMENTS = (LOADING, MASKS, LM_HEAD, LAYERS, SAMPLING, SCORING)


@dataclasses.dataclass(frozen=True)
class Part:
    """Memory of one process for one purpose.

    Attributes:
        name: name of the purpose.
        num_bytes: number of bytes.
        when: time at which it is needed: `ALWAYS`, `TRAINING`, or one of the `MOMENTS`.
    """

    name: str
    num_bytes: int
    when: str = ALWAYS


def fullest(parts: Iterable[Part]) -> list[Part]:
    """Return the parts that take memory at the moment with the highest sum."""
    parts = list(parts)
    by_moment = ([part for part in parts if part.when == ALWAYS or moment.startswith(part.when)] for moment in MOMENTS)
    return max(by_moment, key=sum_of)


def sum_of(parts: Iterable[Part]) -> int:
    """Return the bytes of all parts together."""
    return sum(part.num_bytes for part in parts)
