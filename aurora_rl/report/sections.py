"""The contents of pages' sections: tables of scores, of differences and of several runs.

`templates/sections.html.j2` draws them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aurora_rl.evaluation.comparison import Difference, compare_overall
from aurora_rl.evaluation.measures import MASK_MEASURES, MEASURES, Measure, find_measure, measures_of
from aurora_rl.evaluation.records import RowResult
from aurora_rl.evaluation.tables import Intervals, Table

_MIN_REACH = 0.02  # least extent of the picture of differences on both sides of 0


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """The scores of groups of rows.

    Attributes:
        head: heading of the column of groups.
        measures: measures of the columns.
        groups: numbers of each group.
        intervals: intervals of the numbers, by group.
        before: numbers of an earlier system on the same rows, if two are shown; there are no intervals then.
        count: number of rows that is shown last: those without a prediction of masks (`missing`), or without a readable
            answer (`unreadable`).
    """

    head: str
    measures: tuple[Measure, ...]
    groups: Mapping[str, Table]
    intervals: Mapping[str, Intervals]
    before: Mapping[str, Table] | None
    count: str


def score_table(
    head: str,
    groups: Mapping[str, Table],
    *,
    names: Iterable[str] = MASK_MEASURES,
    intervals: Mapping[str, Intervals] | None = None,
    before: Mapping[str, Table] | None = None,
) -> ScoreTable:
    """Make the table of those measures among `names` that at least one group has."""
    measures = tuple(find_measure(name) for name in names if any(name in numbers for numbers in groups.values()))
    count = "missing" if any("missing" in numbers for numbers in groups.values()) else "unreadable"
    return ScoreTable(head, measures, groups, intervals or {}, before, count)


def shown_measures(
    rows: Sequence[RowResult], preferred: Iterable[str], meanings: Mapping[str, str] | None = None
) -> dict[str, Measure]:
    """Choose a page's measures: the preferred ones that rows have, then those that are a task's own, by name."""
    known = measures_of(rows, meanings)
    own = [name for name in known if name not in MEASURES]
    return {name: known[name] for name in (*preferred, *own) if known[name].over(rows) is not None}


def with_mix(splits: Mapping[str, Any], mix: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any]:
    """Add the numbers or intervals of both kinds of Mix, if they are known, to those of the splits."""
    return {**splits, **{f"Mix, {name.replace('_', ' ')}": of_mix for name, of_mix in mix.items() if of_mix}}


@dataclasses.dataclass(frozen=True)
class DifferenceTable:
    """The differences of two systems by groups of rows.

    Attributes:
        head: heading of the column of groups; empty for a single group, which needs no name.
        groups: differences of each group.
        first: name of the first system on the page.
        second: name of the second system on the page.
    """

    head: str
    groups: Mapping[str, Sequence[Difference]]
    first: str
    second: str

    @property
    def drawn(self) -> tuple[float, float]:
        """Least and greatest difference to draw, as shares of each measure's scale; 0 is between them."""
        rows = [row for group in self.groups.values() for row in group]
        lows = [row.gain.low / row.measure.scale for row in rows]
        highs = [row.gain.high / row.measure.scale for row in rows]
        return min([-_MIN_REACH, *lows]), max([_MIN_REACH, *highs])


@dataclasses.dataclass(frozen=True)
class RunTable:
    """Several runs, each compared with the first.

    Attributes:
        base: name of the first run.
        numbers: numbers of the first run; its measures are the columns.
        differences: differences of each other run from the first, by the run's name and the measure's.
    """

    base: str
    numbers: Table
    differences: Mapping[str, Mapping[str, Difference]]

    @property
    def measures(self) -> list[Measure]:
        """The measures of the columns."""
        return [find_measure(name) for name in self.numbers]


def run_table(
    base: str, rows: Sequence[RowResult], others: Mapping[str, Sequence[RowResult]], *, names: Iterable[str]
) -> RunTable:
    """Compare runs with a first one.

    Args:
        base: name of the first run.
        rows: rows of the first run.
        others: rows of the other runs by name.
        names: names of the measures that are shown if the first run has them.

    Raises:
        ValueError: if the runs hold different rows.
    """
    numbers: Table = {name: number for name in names if (number := find_measure(name).over(rows)) is not None}
    return RunTable(base, numbers, {name: compare_overall(rows, of, names=numbers) for name, of in others.items()})
