"""What the sections of the pages hold: tables of scores, of differences and of runs beside each other.

`templates/sections.html.j2` draws them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aurora_rl.evaluation.comparison import Difference, compare_overall
from aurora_rl.evaluation.measures import MASK_MEASURES, MEASURES, Measure
from aurora_rl.evaluation.records import RowResult
from aurora_rl.evaluation.tables import Intervals, Table

_MIN_REACH = 0.02  # of the picture of differences to both sides of 0


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """The scores of groups of rows.

    Attributes:
        head: what the groups are.
        measures: the columns.
        groups: the numbers of each group.
        intervals: intervals of the numbers, by group.
        before: the numbers of an earlier system on the same rows, where two are shown; they then have no intervals.
    """

    head: str
    measures: tuple[Measure, ...]
    groups: Mapping[str, Table]
    intervals: Mapping[str, Intervals]
    before: Mapping[str, Table] | None


def score_table(
    head: str,
    groups: Mapping[str, Table],
    *,
    names: Iterable[str] = MASK_MEASURES,
    intervals: Mapping[str, Intervals] | None = None,
    before: Mapping[str, Table] | None = None,
) -> ScoreTable:
    """Make the table of the measures among `names` that some group has."""
    measures = tuple(MEASURES[name] for name in names if any(name in numbers for numbers in groups.values()))
    return ScoreTable(head, measures, groups, intervals or {}, before)


def with_mix(splits: Mapping[str, Any], mix: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any]:
    """The splits' numbers or intervals, and those of both kinds of Mix where they are known."""
    return {**splits, **{f"Mix, {name.replace('_', ' ')}": of_mix for name, of_mix in mix.items() if of_mix}}


@dataclasses.dataclass(frozen=True)
class DifferenceTable:
    """The differences of two systems by groups of rows.

    Attributes:
        head: what the groups are; empty where there is one that needs no name.
        groups: the differences of each group.
        first: what the page calls the first system.
        second: what the page calls the second.
    """

    head: str
    groups: Mapping[str, Sequence[Difference]]
    first: str
    second: str

    @property
    def drawn(self) -> tuple[float, float]:
        """Least and greatest difference to draw, as shares of each measure's scale; holds 0."""
        rows = [row for group in self.groups.values() for row in group]
        lows = [row.gain.low / row.measure.scale for row in rows]
        highs = [row.gain.high / row.measure.scale for row in rows]
        return min([-_MIN_REACH, *lows]), max([_MIN_REACH, *highs])


@dataclasses.dataclass(frozen=True)
class RunTable:
    """Runs beside each other, each compared with the first.

    Attributes:
        base: name of the first run.
        numbers: the first run's numbers; its measures are the columns.
        differences: each other run's differences from the first, by the run's name and the measure's.
    """

    base: str
    numbers: Table
    differences: Mapping[str, Mapping[str, Difference]]

    @property
    def measures(self) -> list[Measure]:
        """The columns."""
        return [MEASURES[name] for name in self.numbers]


def run_table(
    base: str, rows: Sequence[RowResult], others: Mapping[str, Sequence[RowResult]], *, names: Iterable[str]
) -> RunTable:
    """Compare runs with a first one.

    Args:
        base: name of the first run.
        rows: its rows.
        others: the rows of the others by their names.
        names: the measures that are shown where the first run has them.

    Raises:
        ValueError: if the runs hold different rows.
    """
    numbers: Table = {name: number for name in names if (number := MEASURES[name].over(rows)) is not None}
    return RunTable(base, numbers, {name: compare_overall(rows, of, names=numbers) for name, of in others.items()})
