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
from aurora_rl.files.existing import check_file

if TYPE_CHECKING:
    from aurora_rl.evaluation.comparison import Comparison

DESCRIPTION = """Compare two out.json of `aurora-rl evaluate`, each row with itself.

For each split: the difference of each number (second - first) with its 95 % bootstrap interval over clips, and on how
many rows the second system is better, worse or equal. Exit code 0: compared, 2: the files cannot be compared, because
preset or rows differ."""


def register(commands: Commands) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("compare", help="compare two systems' scores", description=DESCRIPTION)
    parser.add_argument(
        "first",
        type=json_file,
        help="scores of the one system, as `evaluate` writes them, with their .jsonl beside them",
    )
    parser.add_argument("second", type=json_file, help="scores of the other system, in the same form")
    parser.add_argument("--output", type=json_file, help="JSON file of the comparison, to write as well")
    parser.add_argument("--report", type=Path, metavar="FILE", help="HTML page of the comparison, to write as well")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare, print the table to stdout and return the exit code."""
    # Here, because these import numpy, which takes a while.
    from aurora_rl.evaluation.comparison import compare_scores
    from aurora_rl.evaluation.scores import read_scores
    from aurora_rl.files.atomic import write_whole
    from aurora_rl.report.score_page import write_comparison_page

    try:
        for name in ("first", "second"):
            scores: Path = getattr(args, name)
            check_file(scores, name=f"the {name} out.json")
            check_file(scores.with_suffix(".jsonl"), name="the rows beside it,")
        check_written_files(args, "output", "report")
        comparison = compare_scores(read_scores(args.first), read_scores(args.second))
        if args.output:
            write_whole(args.output, json.dumps(comparison.to_dict(), indent=2, ensure_ascii=False) + "\n")
        if args.report:
            write_comparison_page(args.report, comparison, first=args.first.stem, second=args.second.stem)
    except (OSError, ValueError) as error:
        return refuse("compare", error)
    _print_comparison(comparison, args)
    return CLEAN


def _print_comparison(comparison: Comparison, args: argparse.Namespace) -> None:
    console = open_console()
    console.print(f"{comparison.num_rows:,} rows, preset {comparison.preset}; difference: second - first")
    columns = ("first", "second", "difference", "95 %", "wins", "losses", "ties")
    table = Table("split", "", *(Column(name, justify="right") for name in columns), "second is")
    for split, differences in comparison.splits.items():
        for row in differences:
            numbers = (f"{row.first:.4f}", f"{row.second:.4f}", f"{row.gain.mean:+.4f}")
            interval = f"[{row.gain.low:+.4f}, {row.gain.high:+.4f}]"
            counts = (str(row.wins), str(row.losses), str(row.ties))
            table.add_row(Text(printable(split)), row.name, *numbers, interval, *counts, row.verdict)
    console.print(table)
    console.print(f"first: {printable(str(args.first))}\nsecond: {printable(str(args.second))}")
