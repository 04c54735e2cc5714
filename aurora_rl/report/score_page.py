"""HTML pages about scores: of one system, and of two beside each other. Each is one file that loads nothing."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.evaluation.comparison import Comparison, Difference
from aurora_rl.evaluation.measures import MASK_MEASURES, MEASURES, Measure
from aurora_rl.evaluation.presets import find_preset
from aurora_rl.evaluation.records import RowResult
from aurora_rl.files.atomic import write_whole
from aurora_rl.report.pages import page_environment

_MIN_REACH = 0.02  # of the picture of differences to both sides of 0
_NUM_WORST = 10


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """A table of groups of rows: which numbers it has, and each group's."""

    head: str
    measures: tuple[Measure, ...]
    groups: Mapping[str, Mapping[str, Any]]


def write_score_page(out_html: Path, tables: Mapping[str, Any], rows: Sequence[RowResult]) -> None:
    """Write the page of one system.

    Args:
        out_html: where to.
        tables: the content of scores.json.
        rows: the rows of results.jsonl.
    """
    mixes, mix_intervals = (_label_mix(of["mix"]) for of in (tables, tables["intervals"]))
    targets = sorted((row for row in rows if not row.is_null), key=lambda row: ((row.J + row.F) / 2, row.row))
    _write(
        out_html,
        "scores.html.j2",
        tables=tables,
        splits=_table("Split", {**tables["splits"], **mixes}),
        split_intervals={**tables["intervals"]["splits"], **mix_intervals},
        by_novelty=_table("Unseen split", tables["tables"]["by_novelty"]),
        by_reference_type=_table("Reference type", tables["tables"]["by_reference_type"]),
        by_category=_table("Category", tables["tables"]["by_category"]),
        worst=targets[:_NUM_WORST],
        num_rows=len(rows),
        num_missing=sum(row.is_missing for row in rows),
        preset=find_preset(tables["preset"]),
    )


def write_comparison_page(out_html: Path, comparison: Comparison, *, first: str, second: str) -> None:
    """Write the page of two systems.

    Args:
        out_html: where to.
        comparison: of the two.
        first: what the page calls the first system.
        second: what the page calls the second.
    """
    first, second = (first, second) if first != second else (f"{first} (first)", f"{second} (second)")
    groups = {
        "Split": comparison.splits,
        "Unseen split": comparison.by_novelty,
        "Reference type": comparison.by_reference_type,
        "Category": comparison.by_category,
    }
    _write(
        out_html,
        "comparison.html.j2",
        comparison=comparison,
        first=first,
        second=second,
        groups=groups,
        ranges={head: _range(group) for head, group in groups.items()},
        preset=find_preset(comparison.preset),
    )


def _write(out_html: Path, template: str, **values: Any) -> None:
    page = page_environment().get_template(template)
    html = page.render(**values, measures=[MEASURES[name] for name in MASK_MEASURES])
    write_whole(out_html, re.sub(r"\n\s*\n+", "\n", html))


def _label_mix(mixes: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Mapping[str, Any]]:
    return {f"Mix, {name.replace('_', ' ')}": mix for name, mix in mixes.items() if mix}


def _table(head: str, groups: Mapping[str, Mapping[str, Any]]) -> ScoreTable:
    measures = [MEASURES[name] for name in MASK_MEASURES if any(name in numbers for numbers in groups.values())]
    return ScoreTable(head, tuple(measures), groups)


def _range(groups: Mapping[str, Sequence[Difference]]) -> tuple[float, float]:
    """Least and greatest difference to draw; holds 0."""
    rows = [row for group in groups.values() for row in group]
    return min([-_MIN_REACH, *(row.gain.low for row in rows)]), max([_MIN_REACH, *(row.gain.high for row in rows)])
