"""A system's result: its figures, each beside the bar that it was to meet, in the one form that `make seeds` gathers.

The last stage of a system's stages file, `table`, writes `table.md` and `result.json` into its folder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.evaluation.intervals import Interval
from aurora_rl.files.atomic import whole_files

TABLE_FILE, RESULT_FILE = "table.md", "result.json"
#: What is said of a figure, by whether its bar is met.
VERDICTS = {True: "met", False: "not met", None: "no bar"}


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number beside its bar.

    Attributes:
        name: what the number is of.
        value: the number, or several of one kind.
        bar: what it was to be, in words; empty where nothing was asked of it.
        met: whether it is so; None without a bar.
        low: lower end of its 95 % interval; None for a count or a closed form.
        high: upper end of that interval.
        note: why a bar is not met, or what else a reader must know.
    """

    name: str
    value: float | Sequence[float]
    bar: str = ""
    met: bool | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""

    @classmethod
    def of(cls, name: str, interval: Interval, *, bar: str = "", met: bool | None = None, note: str = "") -> Figure:
        """Make the figure of a mean with its interval."""
        return cls(name, interval.mean, bar, met, interval.low, interval.high, note)


def write_result(
    folder: Path,
    *,
    system: str,
    size: str,
    figures: Sequence[Figure],
    numbers: Mapping[str, Any],
    table: str,
) -> None:
    """Write a system's `result.json` and `table.md`, both whole or not at all.

    Args:
        folder: folder of both files.
        system: name of the system, such as "mcq".
        size: what was measured, in one line: seeds, rows, clips.
        figures: its figures; none for a table alone.
        numbers: further numbers by their names, as `results.json` shall hold them.
        table: the table as Markdown, which the figures are appended to.
    """
    rows = [dataclasses.asdict(figure) for figure in figures]
    content = {"system": system, "size": size, "numbers": dict(numbers), "figures": rows}
    page = "\n\n".join(filter(None, [table, figure_table(rows) if rows else ""]))
    with whole_files(folder / RESULT_FILE, folder / TABLE_FILE) as (result_out, table_out):
        result_out.write((json.dumps(content, indent=2, default=dataclasses.asdict) + "\n").encode())
        table_out.write((page + "\n").encode())


def figure_table(figures: Sequence[Mapping[str, Any]]) -> str:
    """Write figures as a Markdown table, of their form in `result.json`."""
    lines = ["| figure | measured | bar | |", "|---|---|---|---|"]
    for figure in figures:
        verdict = VERDICTS[figure["met"]] + (f": {figure['note']}" if figure["note"] else "")
        lines.append(f"| {figure['name']} | {measured(figure)} | {figure['bar'] or '–'} | {verdict} |")
    return "\n".join(lines)


def measured(figure: Mapping[str, Any]) -> str:
    """Write a figure's number with its interval; counts without decimals."""
    values = figure["value"] if isinstance(figure["value"], Sequence) else [figure["value"]]
    text = ", ".join(f"{value:,}" if isinstance(value, int) else f"{value:.3f}" for value in values)
    if figure["low"] is None or figure["high"] is None:
        return text
    return f"{text} [{figure['low']:.3f}, {figure['high']:.3f}]"
