"""HTML pages about scores: of one system, and of two beside each other. Each is one file that loads nothing."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.evaluation.comparison import Comparison, Difference
from aurora_rl.evaluation.scores import LOWER_IS_BETTER, NULL_MEASURES, TARGET_MEASURES, RowScore
from aurora_rl.files.atomic import write_whole
from aurora_rl.report.pages import page_environment

_MIN_REACH = 0.02  # of the picture of differences to both sides of 0
_NUM_WORST = 10

_AREAS = "255 thresholds on {}, β² = 0.3; the best threshold of each clip"
#: What J and F are under each preset, for the reader of a page.
PRESET_TEXTS = {
    "refavs": ("p > 0.4, at 256 x 256", _AREAS.format("probabilities, at 256 x 256")),
    "avsbench": ("p > 0.5, at 224 x 224", _AREAS.format("probabilities, at 224 x 224")),
    "aurora": ("p > 0.5, at the frames' size", _AREAS.format("logits, at the frames' size")),
    "davis": ("p > 0.5, at the frames' size; two empty masks agree", "of the masks' outlines, p > 0.5"),
}
MEASURE_TEXTS = {
    "J": "region similarity, the mean over frames of intersection over union",
    "F": "F-measure",
    "J&F": "mean of J and F",
    "S": "of references to nothing: share of the clip that is wrongly marked, square root",
    "S_per_frame": "as S, of each frame, then the mean",
    "null_accuracy": "references to nothing where not a pixel is marked",
    "false_alarm_rate": "references to nothing where something is marked",
}


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """A table of groups of rows: which numbers it has, and each group's."""

    head: str
    names: tuple[str, ...]
    groups: Mapping[str, Mapping[str, Any]]


def write_score_page(out_html: Path, tables: Mapping[str, Any], rows: Sequence[RowScore]) -> None:
    """Write the page of one system.

    Args:
        out_html: where to.
        tables: the content of out.json.
        rows: the rows of out.jsonl.
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
        num_missing=sum(row.missing for row in rows),
        preset_texts=PRESET_TEXTS[tables["preset"]],
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
        preset_texts=PRESET_TEXTS[comparison.preset],
    )


def _write(out_html: Path, template: str, **values: Any) -> None:
    page = page_environment().get_template(template)
    html = page.render(**values, measures=MEASURE_TEXTS, lower_is_better=LOWER_IS_BETTER)
    write_whole(out_html, re.sub(r"\n\s*\n+", "\n", html))


def _label_mix(mixes: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Mapping[str, Any]]:
    return {f"Mix, {name.replace('_', ' ')}": mix for name, mix in mixes.items() if mix}


def _table(head: str, groups: Mapping[str, Mapping[str, Any]]) -> ScoreTable:
    names = [name for name in (*TARGET_MEASURES, *NULL_MEASURES) if any(name in group for group in groups.values())]
    return ScoreTable(head, tuple(names), groups)


def _range(groups: Mapping[str, Sequence[Difference]]) -> tuple[float, float]:
    """Least and greatest difference to draw; holds 0."""
    rows = [row for group in groups.values() for row in group]
    return min([-_MIN_REACH, *(row.gain.low for row in rows)]), max([_MIN_REACH, *(row.gain.high for row in rows)])
