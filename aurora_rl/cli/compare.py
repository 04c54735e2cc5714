"""`aurora-rl compare`: whether one system is better than another on the same rows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from aurora_rl.cli.arguments import Commands, json_file
from aurora_rl.cli.checks import check_written_files
from aurora_rl.cli.console import CLEAN, open_console, printable, refuse
from aurora_rl.files.existing import check_existing

if TYPE_CHECKING:
    from aurora_rl.evaluation.comparison import Comparison

DESCRIPTION = """Compare two evaluations of `aurora-rl evaluate`, each row with itself.

For each split: the difference of each number (second - first) with its 95 % bootstrap interval over clips, and on how
many rows the second system is better, worse or equal. Exit code 0: compared, 2: the files cannot be compared, because
preset or rows differ."""


def register(commands: Commands) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("compare", help="compare two systems' scores", description=DESCRIPTION)
    parser.add_argument("first", type=Path, help="folder of the one system's evaluation, or the results.jsonl in it")
    parser.add_argument("second", type=Path, help="folder or results.jsonl of the other system")
    parser.add_argument("--output", type=json_file, help="JSON file of the comparison, to write as well")
    parser.add_argument("--report", type=Path, metavar="FILE", help="HTML page of the comparison, to write as well")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare, print the table to stdout and return the exit code."""
    # Here, because these import numpy, which takes a while.
    from aurora_rl.evaluation.comparison import compare_results
    from aurora_rl.evaluation.records import asked_differently, read_meanings, read_results
    from aurora_rl.files.atomic import write_whole
    from aurora_rl.report.score_page import write_comparison_page

    try:
        for name in ("first", "second"):
            check_existing(getattr(args, name), name=f"the {name} evaluation")
        check_written_files(args, "output", "report")
        comparison = compare_results(read_results(args.first), read_results(args.second))
        otherwise = asked_differently(args.first, args.second)
        if args.output:
            content = comparison.to_dict() | {"asked_differently": otherwise}
            write_whole(args.output, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        if args.report:
            write_comparison_page(
                args.report,
                comparison,
                first=_name_of(args.first),
                second=_name_of(args.second),
                meanings=read_meanings(args.second),
                otherwise=otherwise,
            )
    except (OSError, ValueError) as error:
        return refuse("compare", error)
    _print_comparison(comparison, args)
    if otherwise:
        print(
            f"The two were asked differently, in {', '.join(map(printable, otherwise))}: no model alone explains this."
        )
    return CLEAN


def _name_of(path: Path) -> str:
    """What a page calls an evaluation: its folder's name, or that of a file which has a name of its own."""
    if path.is_dir():
        return path.name
    return path.parent.name if path.stem in ("results", "scores") else path.stem


def _print_comparison(comparison: Comparison, args: argparse.Namespace) -> None:
    console = open_console()
    rules = f", preset {comparison.preset}" if comparison.has_masks else ""
    console.print(f"{comparison.num_rows:,} rows{rules}; difference: second - first")
    columns = ("first", "second", "difference", "95 %", "wins", "losses", "ties")
    table = Table("split", "", *(Column(name, justify="right") for name in columns), "second is")
    for split, differences in comparison.splits.items():
        for row in differences:
            numbers = (f"{row.first:.4f}", f"{row.second:.4f}", f"{row.gain.mean:+.4f}")
            interval = f"[{row.gain.low:+.4f}, {row.gain.high:+.4f}]"
            counts = (str(row.wins), str(row.losses), str(row.ties))
            table.add_row(Text(printable(split)), printable(row.name), *numbers, interval, *counts, row.verdict)
    console.print(table)
    console.print(f"first: {printable(str(args.first))}\nsecond: {printable(str(args.second))}")
