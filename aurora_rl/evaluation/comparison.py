"""The comparison of two systems row by row: differences of scores, their intervals, and the rows with most change."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aurora_rl.evaluation.intervals import Interval, bootstrap_difference
from aurora_rl.evaluation.measures import MAIN_MEASURES, Measure, find_measure, mean, measures_of
from aurora_rl.evaluation.records import RowResult
from aurora_rl.evaluation.tables import GROUPINGS, GroupKey, group_rows, novelty_group, only_preset

NUM_ROWS_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Difference:
    """One number of two systems on the same rows.

    Attributes:
        name: name of the measure, see `measures.find_measure`.
        first: mean of the first system.
        second: mean of the second system.
        gain: mean of second - first with its 95 % bootstrap interval over clips.
        wins: rows on which the second system is better.
        losses: rows on which it is worse.
        ties: rows on which both are equal.
        verdict: verdict on the second system: `"better"` or `"worse"` if the interval does not hold 0, or `"unclear"`.
    """

    name: str
    first: float
    second: float
    gain: Interval
    wins: int
    losses: int
    ties: int
    verdict: str

    @property
    def measure(self) -> Measure:
        """The measure of this name."""
        return find_measure(self.name)


@dataclasses.dataclass(frozen=True)
class RowDifference:
    """The scores of two systems on one row, by the first of `MAIN_MEASURES` that applies to it."""

    row: int
    uid: str
    split: str
    reference: str
    name: str
    first: float
    second: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two systems on the same rows.

    Attributes:
        preset: preset of both.
        num_rows: number of rows.
        has_masks: whether masks of both are scored, so that the preset has a meaning.
        splits: differences of each split.
        by_category: differences of `MAIN_MEASURES` (J&F, S for null references, ...) of each category.
        by_reference_type: the same differences of each reference type.
        by_novelty: the same differences of the unseen split's seen and new categories.
        derived_types: number of rows whose reference type is derived from the sentence.
        wins: rows that the second system improves most, largest first.
        losses: rows that it worsens most.
    """

    preset: str
    num_rows: int
    has_masks: bool
    splits: dict[str, list[Difference]]
    by_category: dict[str, list[Difference]]
    by_reference_type: dict[str, list[Difference]]
    by_novelty: dict[str, list[Difference]]
    derived_types: int
    wins: list[RowDifference]
    losses: list[RowDifference]

    def to_dict(self) -> dict[str, Any]:
        """Convert the comparison to plain dicts, ready for JSON."""
        return dataclasses.asdict(self)


def compare_results(first: Iterable[RowResult], second: Iterable[RowResult]) -> Comparison:
    """Compare two systems row by row, by every measure that both have.

    Raises:
        ValueError: if they were scored under different presets, or hold different rows.
    """
    pairs, preset = _pair(list(first), list(second))
    compared = (_row_difference(*pair) for pair in pairs)
    differences = sorted((row for row in compared if row is not None), key=lambda row: (_gain(row), row.row))
    return Comparison(
        preset=preset,
        num_rows=len(pairs),
        has_masks=any(one.masks and other.masks for one, other in pairs),
        splits=_by(pairs, lambda row: row.split, None),
        by_category=_by(pairs, GROUPINGS["by_category"], MAIN_MEASURES),
        by_reference_type=_by(pairs, GROUPINGS["by_reference_type"], MAIN_MEASURES),
        by_novelty=_by(pairs, novelty_group, MAIN_MEASURES),
        derived_types=sum(row.type_is_derived for row, _ in pairs),
        wins=[row for row in differences[::-1] if _gain(row) > 0][:NUM_ROWS_SHOWN],
        losses=[row for row in differences if _gain(row) < 0][:NUM_ROWS_SHOWN],
    )


def compare_overall(
    first: Iterable[RowResult], second: Iterable[RowResult], *, names: Iterable[str] | None = None
) -> dict[str, Difference]:
    """Compute the difference of each measure over all rows.

    Measures that one system does not have, or that apply to other rows of it, are skipped: a rule that leaves some
    answers out of its total, as `matchers.match_mmsu` does, has no difference of rows.

    Args:
        first: rows of the first system.
        second: rows of the second system.
        names: names of the measures; None for all.

    Raises:
        ValueError: as `compare_results`.
    """
    pairs, _ = _pair(list(first), list(second))
    return {difference.name: difference for difference in _differences(pairs, names)}


Pair = tuple[RowResult, RowResult]


def _pair(first: Sequence[RowResult], second: Sequence[RowResult]) -> tuple[list[Pair], str]:
    """Pair the rows of both, in the order of the table; return the pairs and their preset."""
    preset = only_preset([*first, *second])
    by_key = {row.key: row for row in first}, {row.key: row for row in second}
    unpaired = sorted(by_key[0].keys() ^ by_key[1].keys())
    if unpaired:
        raise ValueError(
            f"{len(unpaired)} rows are in one run only, the first is {unpaired[0]!r}: score both on the same rows"
        )
    pairs = [(by_key[0][key], by_key[1][key]) for key in by_key[0]]
    for one, other in pairs:
        if (one.split, one.category, one.reference) != (other.split, other.category, other.reference):
            raise ValueError(f"row {one.key!r} is not the same in both: score both on the same benchmark")
    return sorted(pairs, key=lambda pair: pair[0].row), preset


def _by(pairs: Sequence[Pair], key: GroupKey, names: Iterable[str] | None) -> dict[str, list[Difference]]:
    """Compute each group's differences, groups of only null references last; rows with the key None are skipped."""
    second = {row.key: row for _, row in pairs}
    groups = group_rows((row for row, _ in pairs), key)
    return {name: _differences([(row, second[row.key]) for row in rows], names) for name, rows in groups.items()}


def _differences(pairs: Sequence[Pair], names: Iterable[str] | None) -> list[Difference]:
    clips = {row.key: row.media_id for row, _ in pairs}
    first, second = zip(*pairs, strict=True)
    measures = measures_of(first).values() if names is None else map(find_measure, names)
    values = [(measure, measure.values(first), measure.values(second)) for measure in measures]
    return [
        _difference(measure, one, other, clips) for measure, one, other in values if one and one.keys() == other.keys()
    ]


def _difference(
    measure: Measure, first: Mapping[str, float], second: Mapping[str, float], clips: Mapping[str, str]
) -> Difference:
    gain = bootstrap_difference(first, second, clips=clips)
    sign = -1 if measure.lower_is_better else 1
    gains = [sign * (second[key] - first[key]) for key in first]
    low, high = sorted((sign * gain.low, sign * gain.high))
    return Difference(
        name=measure.name,
        first=mean(first.values()),
        second=mean(second.values()),
        gain=gain,
        wins=sum(value > 0 for value in gains),
        losses=sum(value < 0 for value in gains),
        ties=sum(value == 0 for value in gains),
        verdict="better" if low > 0 else "worse" if high < 0 else "unclear",
    )


def _row_difference(first: RowResult, second: RowResult) -> RowDifference | None:
    """Compare one row; None if no main measure applies to it in both systems."""
    for name in MAIN_MEASURES:
        one, other = (find_measure(name).value(row) for row in (first, second))
        if one is not None and other is not None:
            return RowDifference(first.row, first.uid, first.split, first.reference, name, one, other)
    return None


def _gain(row: RowDifference) -> float:
    return row.first - row.second if find_measure(row.name).lower_is_better else row.second - row.first
