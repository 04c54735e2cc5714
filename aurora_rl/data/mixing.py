"""The order in which a run reads several data sets: exact shares, the same for a seed and an epoch on any machine.

An epoch is as long as all sets together, rounded up to whole batches of all processes. Each set has its share of it:

    counts   rows of each set in an epoch, by the largest remainder of its share
    order    which set is next: at any point of an epoch each set has had its share of the rows so far, but for less
             than one row
    rows     which of its rows: a set is gone through in a shuffled order, which is drawn anew for each pass, and the
             next epoch goes on where the last one ended

Everything follows from the seed and the epoch's number, so that a resumed run reads what an unbroken one would have.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from fractions import Fraction


@dataclasses.dataclass(frozen=True)
class MixedSet:
    """One of the sets of a run, whose rows lie together in the run's list.

    Attributes:
        name: name of the set.
        size: number of its rows.
        share: share of the rows that are read; those of all sets need not sum to 1. None where no set has one: then
            each row is read once an epoch.
        has_frames: whether its rows have frames. A batch holds one kind, on all processes at once.
    """

    name: str
    size: int
    share: float | None = None
    has_frames: bool = True


class Mix:
    """The order of the rows of several sets.

    Args:
        sets: the sets, in the order in which their rows lie in the run's list.
        unit: number of rows that all processes read at once. Shares hold for any number of rows; where some sets have
            frames and others have not, a unit holds rows of one kind.
        seed: seed of the shuffling.
        shuffle: whether a set's rows are shuffled.

    Raises:
        ValueError: if some sets have a share and others have none, or a share is so small that no row is read.
    """

    def __init__(self, sets: Sequence[MixedSet], *, unit: int, seed: int = 0, shuffle: bool = True) -> None:
        self.sets = tuple(sets)
        self.unit = unit
        self.seed = seed
        self.shuffle = shuffle
        self._starts = [sum(each.size for each in self.sets[:index]) for index in range(len(self.sets))]
        weights = _weights(self.sets)
        kinds = [[i for i, each in enumerate(self.sets) if each.has_frames is kind] for kind in (True, False)]
        self._kinds = [kind for kind in kinds if kind]
        num_units = -(-sum(each.size for each in self.sets) // unit)
        of_kinds = [sum((weights[i] for i in kind), Fraction(0)) for kind in self._kinds]
        self._units = apportion(max(num_units, len(self._kinds)), of_kinds)
        counts = [0] * len(self.sets)
        for kind, units in zip(self._kinds, self._units, strict=True):
            for index, count in zip(kind, apportion(units * unit, [weights[i] for i in kind]), strict=True):
                counts[index] = count
        for each, count in zip(self.sets, counts, strict=True):
            if count == 0:
                raise ValueError(
                    f"data: the share of {each.name!r} ({each.share}) is not one row of an epoch of {sum(counts)}: "
                    "raise it, or leave the data set out"
                )
        #: Rows of each set in an epoch.
        self.counts = tuple(counts)

    def __len__(self) -> int:
        return sum(self.counts)

    def order(self, epoch: int) -> Iterator[int]:
        """Yield the indices of an epoch's rows in the run's list."""
        rows = [self._rows_of(index, epoch * count) for index, count in enumerate(self.counts)]
        sets = [interleave([self.counts[i] for i in kind]) for kind in self._kinds]
        for which in interleave(self._units):
            for _ in range(self.unit):
                index = self._kinds[which][next(sets[which])]
                yield self._starts[index] + next(rows[index])

    def _rows_of(self, index: int, start: int) -> Iterator[int]:
        """Yield a set's rows without end, from a place in the row of its passes on."""
        size = self.sets[index].size
        number, place = divmod(start, size)
        while True:
            rows = list(range(size))
            if self.shuffle:
                random.Random(f"{self.seed}/{self.sets[index].name}/{number}").shuffle(rows)
            yield from rows[place:]
            number, place = number + 1, 0


def _weights(sets: Sequence[MixedSet]) -> list[Fraction]:
    without = [each.name for each in sets if each.share is None]
    if without and len(without) < len(sets):
        raise ValueError(f"data: {without[0]!r} has no share, others have one: give each a share, or none")
    return [Fraction(each.size if each.share is None else str(each.share)) for each in sets]


def apportion(total: int, weights: Sequence[Fraction]) -> list[int]:
    """Split a number by weights into whole parts that sum to it, by the largest remainder.

    >>> apportion(10, [Fraction(7), Fraction(2), Fraction(1)])
    [7, 2, 1]
    >>> apportion(10, [Fraction(1), Fraction(1), Fraction(1)])
    [4, 3, 3]
    """
    exact = [total * weight / sum(weights) for weight in weights]
    parts = [int(part) for part in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: (parts[i] - exact[i], i))
    for index in by_remainder[: total - sum(parts)]:
        parts[index] += 1
    return parts


def interleave(counts: Sequence[int]) -> Iterator[int]:
    """Yield indices, each as often as its count says, spread evenly.

    >>> list(interleave([4, 2]))
    [0, 0, 1, 0, 0, 1]

    Of those that are behind their share the one is next that has to come first. So after any number of them, an index
    has come as often as its share of that number, but for less than one time.
    """
    total, given = sum(counts), [0] * len(counts)
    for place in range(total):
        behind = [i for i, count in enumerate(counts) if given[i] * total < count * (place + 1)]
        index = min(behind, key=lambda i: (-(-(given[i] + 1) * total // counts[i]), i))
        given[index] += 1
        yield index
