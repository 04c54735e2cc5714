"""Two systems' scores beside each other, row by row: who is better, by how much, how surely, and on which rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from aurora_rl.evaluation.intervals import Interval, bootstrap_difference
from aurora_rl.evaluation.scores import (
    LOWER_IS_BETTER,
    NULL_MEASURES,
    TARGET_MEASURES,
    Measure,
    RowScore,
    novelty_group,
    only_preset,
)

NUM_ROWS_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Difference:
    """One number of two systems on the same rows.

    Attributes:
        name: of the number, a key of `scores.TARGET_MEASURES` or `NULL_MEASURES`.
        first: mean of the first system.
        second: mean of the second system.
        gain: mean of second - first with its 95 % bootstrap interval over clips.
        wins: rows on which the second system is better.
        losses: rows on which it is worse.
        ties: rows on which both are equal.
        verdict: whether the interval lies wholly on one side of 0: `"better"`, `"worse"` or `"unclear"`, of the second.
    """

    name: str
    first: float
    second: float
    gain: Interval
    wins: int
    losses: int
    ties: int
    verdict: str


@dataclasses.dataclass(frozen=True)
class RowDifference:
    """One row of two systems; J&F, or S of a null reference."""

    row: int
    uid: str
    split: str
    text: str
    name: str
    first: float
    second: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two systems on the same rows.

    Attributes:
        preset: the preset of both.
        num_rows: how many rows there are.
        splits: the differences of each split.
        by_category: of J&F (S for null references) of each category.
        by_reference_type: likewise.
        by_novelty: likewise, of the unseen split's seen and new categories.
        derived_types: rows whose reference type is from the sentence.
        wins: rows that the second system improves most, largest first.
        losses: rows that it worsens most.
    """

    preset: str
    num_rows: int
    splits: dict[str, list[Difference]]
    by_category: dict[str, list[Difference]]
    by_reference_type: dict[str, list[Difference]]
    by_novelty: dict[str, list[Difference]]
    derived_types: int
    wins: list[RowDifference]
    losses: list[RowDifference]

    def to_dict(self) -> dict[str, Any]:
        """This comparison as plain dicts, ready for JSON."""
        return dataclasses.asdict(self)


def compare_scores(first: Iterable[RowScore], second: Iterable[RowScore]) -> Comparison:
    """Compare two systems, each row with itself.

    Raises:
        ValueError: if they were scored under different presets, or hold different rows.
    """
    pairs, preset = _pair(list(first), list(second))
    main = ("J&F", "S")
    differences = sorted((_row_difference(*pair) for pair in pairs), key=lambda row: (_gain(row), row.row))
    return Comparison(
        preset=preset,
        num_rows=len(pairs),
        splits=_by(pairs, lambda row: row.split),
        by_category=_by(pairs, lambda row: row.category, names=main),
        by_reference_type=_by(pairs, lambda row: row.reference_type, names=main),
        by_novelty=_by(pairs, novelty_group, names=main),
        derived_types=sum(row.type_is_derived for row, _ in pairs),
        wins=[row for row in differences[::-1] if _gain(row) > 0][:NUM_ROWS_SHOWN],
        losses=[row for row in differences if _gain(row) < 0][:NUM_ROWS_SHOWN],
    )


Pair = tuple[RowScore, RowScore]


def _pair(first: Sequence[RowScore], second: Sequence[RowScore]) -> tuple[list[Pair], str]:
    """The rows of both in the order of the table, and their preset."""
    preset = only_preset([*first, *second])
    by_key = {row.key: row for row in first}, {row.key: row for row in second}
    unpaired = sorted(by_key[0].keys() ^ by_key[1].keys())
    if unpaired:
        raise ValueError(
            f"{len(unpaired)} rows are in one run only, the first is {unpaired[0]!r}: score both on the same rows"
        )
    pairs = [(by_key[0][key], by_key[1][key]) for key in by_key[0]]
    for one, other in pairs:
        if (one.split, one.category, one.text) != (other.split, other.category, other.text):
            raise ValueError(f"row {one.key!r} is not the same in both: score both on the same benchmark")
    return sorted(pairs, key=lambda pair: pair[0].row), preset


def _by(
    pairs: Sequence[Pair], key: Callable[[RowScore], str | None], *, names: Sequence[str] = ()
) -> dict[str, list[Difference]]:
    """The differences of each group of rows, those of null references alone last; all numbers, or those named.

    Rows whose key is None are in no group.
    """
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        if (name := key(pair[0])) is not None:
            groups.setdefault(name, []).append(pair)
    order = sorted(groups, key=lambda name: (all(row.is_null for row, _ in groups[name]), name))
    return {name: _differences(groups[name], names) for name in order}


def _differences(pairs: Sequence[Pair], names: Sequence[str]) -> list[Difference]:
    targets = [pair for pair in pairs if not pair[0].is_null]
    nulls = [pair for pair in pairs if pair[0].is_null]
    return [
        _difference(name, measure, group)
        for group, measures in ((targets, TARGET_MEASURES), (nulls, NULL_MEASURES))
        for name, measure in measures.items()
        if group and (not names or name in names)
    ]


def _difference(name: str, measure: Measure, pairs: Sequence[Pair]) -> Difference:
    first, second = ({row.key: measure(row) for row in rows} for rows in zip(*pairs, strict=True))
    gain = bootstrap_difference(first, second, clips={row.key: row.media_id for row, _ in pairs})
    sign = -1 if name in LOWER_IS_BETTER else 1
    gains = [sign * (second[key] - first[key]) for key in first]
    low, high = sorted((sign * gain.low, sign * gain.high))
    return Difference(
        name=name,
        first=math.fsum(first.values()) / len(pairs),
        second=math.fsum(second.values()) / len(pairs),
        gain=gain,
        wins=sum(value > 0 for value in gains),
        losses=sum(value < 0 for value in gains),
        ties=sum(value == 0 for value in gains),
        verdict="better" if low > 0 else "worse" if high < 0 else "unclear",
    )


def _row_difference(first: RowScore, second: RowScore) -> RowDifference:
    name = "S" if first.is_null else "J&F"
    measure = (NULL_MEASURES if first.is_null else TARGET_MEASURES)[name]
    return RowDifference(first.row, first.uid, first.split, first.text, name, measure(first), measure(second))


def _gain(row: RowDifference) -> float:
    return row.first - row.second if row.name in LOWER_IS_BETTER else row.second - row.first
