"""HTML pages of one system's scores, and of a comparison of two. Each is one file that loads no others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.evaluation.comparison import Comparison
from aurora_rl.evaluation.measures import MASK_MEASURES, MEASURES, Measure, find_measure, measures_of
from aurora_rl.evaluation.presets import find_preset
from aurora_rl.evaluation.records import RowResult
from aurora_rl.evaluation.side_by_side import letter_rows, with_ablations
from aurora_rl.report.pages import write_page
from aurora_rl.report.sections import DifferenceTable, ScoreTable, score_table, with_mix

_NUM_WORST = 10


def write_score_page(out_html: Path, tables: Mapping[str, Any], rows: Sequence[RowResult]) -> None:
    """Write the page of one system.

    Args:
        out_html: path of the page.
        tables: content of scores.json.
        rows: rows of results.jsonl.
    """

    measures = page_measures(rows, tables.get("meanings"))

    def by(head: str, name: str) -> ScoreTable:
        groups, intervals = (with_ablations(tables, *path, name) for path in (["tables"], ["intervals"]))
        return score_table(head, groups, names=measures, intervals=intervals)

    splits = with_mix(with_ablations(tables, "splits"), tables["mix"])
    intervals = with_mix(with_ablations(tables, "intervals", "splits"), tables["intervals"]["mix"])
    found = [(row, quality) for row in rows if (quality := MEASURES["J&F"].value(row)) is not None]
    wrong = [row for row in rows if row.greedy and not row.greedy.is_right and row.answer is not None]
    write_page(
        out_html,
        "scores.html.j2",
        tables=tables,
        splits=score_table("Split", splits, names=measures, intervals=intervals),
        by_novelty=by("Unseen split", "by_novelty"),
        by_reference_type=by("Reference type", "by_reference_type"),
        by_category=by("Category", "by_category"),
        by_letter=by("Right letter", "by_letter"),
        letters=letter_rows(tables),
        worst=[row for row, _ in sorted(found, key=lambda pair: (pair[1], pair[0].row))][:_NUM_WORST],
        wrong=wrong[:_NUM_WORST],
        num_wrong=len(wrong),
        num_rows=len(rows),
        num_missing=sum(row.is_missing for row in rows),
        has_masks=any(row.masks for row in rows),
        preset=find_preset(tables["preset"]),
        measures=measures.values(),
    )


def page_measures(rows: Sequence[RowResult], meanings: Mapping[str, str] | None = None) -> dict[str, Measure]:
    """Choose the measures of a page of scores: those of masks where masks are scored, all that rows have otherwise."""
    if any(row.masks for row in rows):
        return {name: MEASURES[name] for name in MASK_MEASURES}
    return {name: of for name, of in measures_of(rows, meanings).items() if of.over(rows) is not None}


def write_comparison_page(
    out_html: Path,
    comparison: Comparison,
    *,
    first: str,
    second: str,
    meanings: Mapping[str, str] | None = None,
    otherwise: Sequence[str] = (),
) -> None:
    """Write the page that compares two systems.

    Args:
        out_html: path of the page.
        comparison: comparison of the two.
        first: name of the first system on the page.
        second: name of the second system on the page.
        meanings: explanations of a task's own scores, from `records.read_meanings`.
        otherwise: what the two were asked differently, from `records.asked_differently`.
    """
    names = dict.fromkeys(row.name for rows in comparison.splits.values() for row in rows)
    first, second = (first, second) if first != second else (f"{first} (first)", f"{second} (second)")
    write_page(
        out_html,
        "comparison.html.j2",
        comparison=comparison,
        otherwise=otherwise,
        first=first,
        second=second,
        splits=DifferenceTable("Split", comparison.splits, first, second),
        by_novelty=DifferenceTable("Unseen split", comparison.by_novelty, first, second),
        by_reference_type=DifferenceTable("Reference type", comparison.by_reference_type, first, second),
        by_category=DifferenceTable("Category", comparison.by_category, first, second),
        has_masks=comparison.has_masks,
        preset=find_preset(comparison.preset),
        measures=[find_measure(name, meanings) for name in names],
    )
