"""Scores with a modality taken away, beside the scores of the same rows with it.

An ablation changes nothing about a row that lacks the modality: muting leaves a clip without sound as it is. Such rows
are counted and left out, since their scores would be those of the unchanged row under the name of the ablation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from aurora_rl.evaluation.comparison import compare_overall
from aurora_rl.evaluation.records import RowResult
from aurora_rl.evaluation.tables import score_tables

#: The parts of an ablation's tables that scores.json repeats beside the unchanged numbers.
_BESIDE = ("unchanged", "overall", "splits", "tables", "letters", "intervals")


def ablated_tables(rows: Sequence[RowResult], changed: Collection[str]) -> dict[str, Any]:
    """Compute the content of scores.<ablation>.json.

    Args:
        rows: all rows of the pass.
        changed: keys of the rows that the ablation changes.

    Returns:
        `tables.score_tables` of the changed rows, and `unchanged`, the number of the others.
    """
    kept = [row for row in rows if row.key in changed]
    return score_tables(kept) | {"unchanged": len(rows) - len(kept)}


def beside(
    whole: Sequence[RowResult], ablated: Sequence[RowResult], changed: Collection[str], tables: Mapping[str, Any]
) -> dict[str, Any]:
    """Choose what scores.json says about an ablation, and compare it with the unchanged pass on the changed rows.

    Args:
        whole: all rows with nothing taken away.
        ablated: all rows of the pass.
        changed: keys of the rows that the ablation changes.
        tables: result of `ablated_tables`.

    Returns:
        The main tables of the ablation; `differences`, the paired differences ablated - unchanged with their intervals.
    """
    before, after = ([row for row in rows if row.key in changed] for rows in (whole, ablated))
    differences = compare_overall(before, after)
    gains = {name: dataclasses.asdict(difference.gain) for name, difference in differences.items()}
    return {name: tables[name] for name in _BESIDE} | {"differences": gains}
