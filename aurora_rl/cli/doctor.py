"""`aurora-rl doctor`: whether a benchmark's folder is whole, before a run finds out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.table import Column, Table
from rich.text import Text

from aurora_rl.cli.arguments import Commands, positive
from aurora_rl.cli.console import CLEAN, PROBLEMS, open_console, printable, refuse
from aurora_rl.data.clips_doctor import ClipsReport, examine_clips, is_manifest
from aurora_rl.data.doctor import Report, examine, examine_metadata
from aurora_rl.data.files import DatasetError
from aurora_rl.data.ref_avs import METADATA_FILE
from aurora_rl.files.existing import check_folder

DESCRIPTION = """Check a folder in Ref-AVSBench's layout, or a manifest of own clips: the table and all files it names.

Exit code 0: clean, 1: problems, 2: unusable arguments or path. Notes (rows of split TODO, duplicate rows, repeated
uids: the official file has them) count as problems with --strict only."""


def register(commands: Commands) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("doctor", help="check a dataset", description=DESCRIPTION)
    parser.add_argument(
        "path",
        type=Path,
        metavar="PATH",
        help="folder with metadata.csv, media/ and gt_mask/, or a manifest (JSONL, CSV, Parquet) or its folder; with "
        "--metadata_only, also a csv file of Ref-AVSBench",
    )
    parser.add_argument(
        "--metadata_only", action="store_true", help="check metadata.csv without the files that it names"
    )
    parser.add_argument(
        "--split", nargs="+", metavar="SPLIT", help="splits whose files are checked (default: all but TODO)"
    )
    parser.add_argument(
        "--num_frames",
        type=_frames,
        default=10,
        help="number of frames that a clip must have (an own clip: at most), or 'any'",
    )
    parser.add_argument("--fps", type=float, default=1.0, help="frames a second that are sampled of own videos")
    parser.add_argument(
        "--columns",
        nargs="+",
        type=_renamed,
        metavar="NAME=COLUMN",
        help="names of a manifest's columns, such as reference=caption",
    )
    parser.add_argument(
        "--num_workers", type=positive, default=1, help="number of threads; the report does not depend on it"
    )
    parser.add_argument("--strict", action="store_true", help="exit with code 1 on notes, too")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of text")
    parser.set_defaults(run=run)


def _frames(text: str) -> int | None:
    return None if text == "any" else positive(text)


def _renamed(text: str) -> tuple[str, str]:
    name, _, column = text.partition("=")
    if not name or not column:
        raise argparse.ArgumentTypeError(f"{text!r} is no pair such as reference=caption")
    return name, column


def run(args: argparse.Namespace) -> int:
    """Check a dataset, print the report to stdout and return the exit code."""
    try:
        report = _examine(args)
    except (OSError, ValueError) as error:
        return refuse("doctor", error)
    if args.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        _print_report(report, args)
    return PROBLEMS if report.has_errors or (args.strict and report.problems) else CLEAN


def _examine(args: argparse.Namespace) -> Report | ClipsReport:
    if args.metadata_only:
        return examine_metadata(args.path)
    if not (args.path / METADATA_FILE).is_file() and is_manifest(args.path):
        return examine_clips(
            args.path,
            splits=args.split,
            columns=dict(args.columns or ()),
            fps=args.fps,
            num_frames=args.num_frames,
            num_workers=args.num_workers,
        )
    if args.path.is_file():
        raise DatasetError(f"{args.path} is a file: give the folder of the benchmark, or add --metadata_only")
    check_folder(args.path, name="the folder")
    return examine(args.path, splits=args.split, num_frames=args.num_frames, num_workers=args.num_workers)


def _print_report(report: Report | ClipsReport, args: argparse.Namespace) -> None:
    console = open_console()
    facts = report if isinstance(report, ClipsReport) else report.facts
    if isinstance(facts, ClipsReport):
        more = f"; {facts.unlabelled_rows:,} have no masks"
    else:
        more = f" ({facts.null_sentences} distinct sentences)"
    console.print(f"{facts.rows:,} rows, {facts.null_rows:,} of them null references{more}")
    table = Table("split", *(Column(name, justify="right") for name in ("rows", "media ids", "null rows")))
    for split, size in facts.splits.items():
        table.add_row(Text(printable(split)), f"{size.rows:,}", f"{size.media_ids:,}", f"{size.null_rows:,}")
    console.print(table)
    if report.problems:
        table = Table("", "problem", "count", "first", "what to do", show_lines=True)
        for problem in report.problems:
            kind = problem.about
            severity = "error" if kind.is_error else "note"
            count = f"{problem.count:,} {kind.unit}{'' if problem.count == 1 else 's'}"
            cells = (severity, kind.title, count, printable(problem.first), kind.advice)
            table.add_row(*(Text(cell, overflow="fold") for cell in cells))
        console.print(table)
    num_errors = sum(problem.is_error for problem in report.problems)
    checked = "metadata.csv alone" if report.clips_checked is None else f"{report.clips_checked:,} clips"
    notes = len(report.problems) - num_errors
    console.print(f"Checked {checked}: {num_errors} kind(s) of errors, {notes} of notes.")
