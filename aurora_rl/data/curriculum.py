"""Which rows are trained on and in which order, by how often a model was right about each: pass rates and curricula.

A file of pass rates is what `data_prep/pass_rates.py` writes, one line a row: {"uid": ..., "row": 0, "passes": 11,
"tries": 16}. Groups of G completions that are all right or all wrong teach GRPO nothing, so rows at the ends are left
out: without them the easiest rows come first and are mostly such groups (`dead_share`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence

from aurora_rl.data.files import DatasetError
from aurora_rl.data.sample import AVSample
from aurora_rl.files.plain import NotPlainFileError, RecordError, read_records

RowKey = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class PassRate:
    """How often a model was right about a row.

    Attributes:
        passes: number of right tries.
        tries: number of tries.
    """

    passes: int
    tries: int

    @property
    def share(self) -> float:
        """Share of right tries."""
        return self.passes / self.tries


#: What rows are sorted by, smallest first, by the name of the order.
ORDERS: Mapping[str, Callable[[PassRate], float]] = {
    "easy_to_hard": lambda rate: -rate.share,
    "hard_to_easy": lambda rate: rate.share,
    "middle_out": lambda rate: abs(rate.share - 0.5),
    "shuffled": lambda rate: 0.0,
}


def read_pass_rates(path: str | os.PathLike[str]) -> dict[RowKey, PassRate]:
    """Read the pass rates of all rows of a file.

    Raises:
        DatasetError: if the file is missing or a line is malformed or repeats a row; naming the line.
    """
    rates: dict[RowKey, PassRate] = {}
    try:
        for place, record in read_records(path):
            uid, row, passes, tries = (record.get(name) for name in ("uid", "row", "passes", "tries"))
            if not isinstance(uid, str) or type(row) is not int or type(passes) is not int or type(tries) is not int:
                raise DatasetError(f"{place} is no pass rate: expected what data_prep/pass_rates.py writes")
            if not 0 <= passes <= tries or tries < 1:
                raise DatasetError(f"{place} has {passes} passes in {tries} tries: count them again")
            if (uid, row) in rates:
                raise DatasetError(f"{place} has the row {uid}#{row} again: keep one line a row")
            rates[uid, row] = PassRate(passes, tries)
    except (RecordError, NotPlainFileError, OSError) as error:
        raise DatasetError(f"cannot read pass rates: {error}") from error
    return rates


def by_pass_rates(
    samples: Sequence[AVSample],
    rates: Mapping[RowKey, PassRate],
    *,
    order: str | None = None,
    bands: int | None = None,
    above: float = 0.0,
    below: float = 1.0,
    seed: int = 0,
) -> list[AVSample]:
    """Leave out rows that are too hard or too easy, and put the others into an order.

    The order depends on the rates, the rows' keys and the seed alone. `AVSample.extra` then holds `passes` and
    `tries` of the row, which reward functions get as columns.

    Args:
        samples: rows of a split.
        rates: pass rate of each by uid and row; those of other rows are ignored.
        order: a key of `ORDERS`; None keeps the rows' own.
        bands: number of parts, as equal as can be, into which the ordered rows are cut and within which they are
            shuffled; None shuffles only rows of equal rates.
        above: share that a row's rate must exceed; below 0 keeps those that never passed.
        below: share that a row's rate must stay under; above 1 keeps those that always passed.
        seed: seed of the shuffling.

    Raises:
        DatasetError: if a row has no rate, or no row is left.
        ValueError: if the order is unknown or `bands` is no positive number.
    """
    if order is not None and order not in ORDERS:
        raise ValueError(f"unknown curriculum {order!r}: choose from {', '.join(ORDERS)}")
    if bands is not None and bands < 1:
        raise ValueError(f"curriculum_bands is {bands}: expected a positive number")
    without = [sample for sample in samples if (sample.uid, sample.row) not in rates]
    if without:
        raise DatasetError(
            f"{len(without)} of {len(samples)} rows have no pass rate, the first is {without[0].key} "
            f"({without[0].origin}): count them with the same data and `max_rows` left out"
        )
    kept = [sample for sample in samples if above < rates[sample.uid, sample.row].share < below]
    if not kept:
        raise DatasetError(f"none of {len(samples)} rows has a pass rate between {above:g} and {below:g}")
    if order is not None:
        kept = _ordered(kept, rates, order, bands, seed)
    return [_with_rate(sample, rates[sample.uid, sample.row]) for sample in kept]


def _ordered(
    samples: Sequence[AVSample], rates: Mapping[RowKey, PassRate], order: str, bands: int | None, seed: int
) -> list[AVSample]:
    drawn = {sample.key: hashlib.sha256(f"{seed}/{sample.key}".encode()).digest() for sample in samples}
    ordered = sorted(samples, key=lambda sample: (ORDERS[order](rates[sample.uid, sample.row]), drawn[sample.key]))
    if bands is None:
        return ordered
    edges = [round(len(ordered) * number / bands) for number in range(bands + 1)]
    parts = [ordered[start:end] for start, end in zip(edges[:-1], edges[1:], strict=True)]
    return [sample for part in parts for sample in sorted(part, key=lambda sample: drawn[sample.key])]


def _with_rate(sample: AVSample, rate: PassRate) -> AVSample:
    return dataclasses.replace(sample, extra=json.dumps(sample.extra_columns | dataclasses.asdict(rate)))


def rate_of(sample: AVSample) -> PassRate | None:
    """Return the pass rate that `by_pass_rates` has given a row; None without."""
    found = sample.extra_columns
    if type(found.get("passes")) is not int or type(found.get("tries")) is not int:
        return None
    return PassRate(found["passes"], found["tries"])


def dead_share(rate: PassRate, num_generations: int) -> float:
    """Estimate the probability that a group's answers are all right or all wrong, so that accuracy teaches nothing.

    Without bias: of T tries with k passes, the share of subsets of G that are alike, C(k,G)/C(T,G) + C(T-k,G)/C(T,G).
    Inserting k/T for p in p^G + (1-p)^G would be biased upwards: 0.0078 for 8 of 16 and G = 8.

    >>> dead_share(PassRate(8, 16), 8), dead_share(PassRate(16, 16), 8)
    (0.0001554001554001554, 1.0)

    Args:
        rate: the row's pass rate; T must be G at least.
        num_generations: G.

    Raises:
        ValueError: if there were fewer tries than G.
    """
    if rate.tries < num_generations:
        raise ValueError(f"{rate.tries} tries a row tell nothing about groups of {num_generations}: try that often")
    groups = math.comb(rate.tries, num_generations)
    alike = math.comb(rate.passes, num_generations) + math.comb(rate.tries - rate.passes, num_generations)
    return alike / groups
