"""The command `aurora-rl`: tools that need no recipe. A thin layer of arguments and text over the package.

aurora-rl doctor data/ref_avs --num_workers 8
aurora-rl footprint grpo --config recipes/ref_avs/grpo_7b.yaml --launch accelerate_configs/zero2.yaml
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from aurora_rl.data.doctor import PROBLEM_KINDS, Report, examine, examine_metadata
from aurora_rl.data.files import DatasetError

CLEAN, PROBLEMS, UNUSABLE = 0, 1, 2  # exit codes; argparse, too, exits with 2
PIPE_WIDTH = 160  # columns of a table that does not go to a terminal
MAX_EXAMPLE_LENGTH = 400  # characters; a broken table can hold fields of any length

DOCTOR_HELP = """Check a folder in Ref-AVSBench's layout: metadata.csv and every frame, audio file and mask it names.

Exit code 0: clean, 1: problems, 2: unusable arguments or root. Notes (rows of split TODO, duplicate rows, repeated
uids: the official file has them) count as problems with --strict only."""


FOOTPRINT_HELP = """Estimate memory and operations of a recipe's run from its config: no GPU, no weights and no data.

Options of the recipe may follow, such as --model DIR for a folder with a config.json. Exit code 0: printed, and it
fits where --memory_limit_gb is given, 1: it does not fit, 2: unusable arguments."""

EXPORT_HELP = """Write a model as vLLM loads it: the full layout, LoRA merged, [SEG] in the tokenizer, no mask decoder.

`vllm serve` starts from this folder for GRPO in server mode; see docs/vllm.md."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command and return its exit code.

    Raises:
        SystemExit: with code 2, from argparse, if the arguments make no sense.
    """
    args = parse_arguments(argv)
    return args.run(args)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what is not the command's own, but a recipe's, is in `options`.

    Raises:
        SystemExit: with code 2, if the arguments make no sense.
    """
    parser = argparse.ArgumentParser(prog="aurora-rl", description="Tools of Aurora-RL.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_doctor(commands.add_parser("doctor", help="check a dataset", description=DOCTOR_HELP, formatter_class=_Help))
    _add_footprint(
        commands.add_parser(
            "footprint",
            help="estimate a run's memory",
            description=FOOTPRINT_HELP,
            formatter_class=_Help,
            allow_abbrev=False,  # the recipe's own options must not be taken for this command's
        )
    )
    _add_export(
        commands.add_parser("export", help="write a model for vLLM", description=EXPORT_HELP, formatter_class=_Help)
    )
    args, options = parser.parse_known_args(argv)
    if options and "options" not in args:
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    args.options = options
    return args


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the description's lines and shows defaults."""


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, help="folder with metadata.csv, media/, gt_mask/ (or, alone, a csv file)")
    parser.add_argument("--metadata-only", "--metadata_only", action="store_true", help="check metadata.csv alone")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="splits whose files are checked (all but TODO)")
    parser.add_argument("--num_frames", type=_frames, default=10, help="frames of a clip, or 'any'")
    parser.add_argument("--num_workers", type=_positive, default=1, help="threads; the report does not depend on it")
    parser.add_argument("--strict", action="store_true", help="exit with 1 on notes, too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(run=run_doctor)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="hub name or folder: a plain MLLM, a trained model or a LoRA adapter")
    parser.add_argument("--output_dir", "-o", type=Path, required=True, help="folder that is written")
    parser.add_argument("--to", choices=("vllm",), default="vllm", help="who reads it")
    parser.add_argument("--dtype", default="auto", help="of the weights, such as bfloat16")
    parser.set_defaults(run=run_export)


def _add_footprint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", choices=("sft", "grpo"), help="whose arguments the config holds")
    parser.add_argument("--config", required=True, help="YAML file of the recipe")
    parser.add_argument("--launch", type=Path, metavar="FILE", help="accelerate config (one GPU without it)")
    parser.add_argument("--processes", type=_positive, help="instead of the accelerate config's")
    parser.add_argument("--zero", type=int, choices=range(4), help="ZeRO stage instead of the accelerate config's")
    parser.add_argument("--clips", type=_positive, help="number of clips of the benchmark, for the embedding cache")
    parser.add_argument("--frame_size", type=_positive, nargs=2, metavar=("H", "W"), help="of the frames, in pixels")
    parser.add_argument("--tflops", type=float, help="peak of the device, for a time")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of the peak that is reached")
    parser.set_defaults(run=run_footprint, options=[])


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def _frames(text: str) -> int | None:
    return None if text == "any" else _positive(text)


def run_doctor(args: argparse.Namespace) -> int:
    """Check a dataset, print the report to stdout and return the exit code."""
    try:
        report = _examine(args)
    except (DatasetError, OSError) as error:
        print(f"aurora-rl doctor: {_printable(str(error))}", file=sys.stderr)
        return UNUSABLE
    if args.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        _print_report(report, args)
    return PROBLEMS if report.has_errors or (args.strict and report.problems) else CLEAN


def run_export(args: argparse.Namespace) -> int:
    """Write the directory that vLLM loads and return the exit code."""
    from aurora_rl.rollout.export import export_checkpoint

    try:
        folder = export_checkpoint(args.model, args.output_dir, dtype=args.dtype)
    except (OSError, ValueError) as error:
        print(f"aurora-rl export: {_printable(str(error))}", file=sys.stderr)
        return UNUSABLE
    print(folder)
    return CLEAN


def run_footprint(args: argparse.Namespace) -> int:
    """Estimate a recipe's run, print the table to stdout and return the exit code."""
    # Here, because these import torch and transformers, which take seconds.
    from aurora_rl.footprint.by_hand import estimate_recipe

    try:
        text, fits = estimate_recipe(args)
    except (OSError, ValueError) as error:
        print(f"aurora-rl footprint: {_printable(str(error))}", file=sys.stderr)
        return UNUSABLE
    print(text)
    return CLEAN if fits else PROBLEMS


def _examine(args: argparse.Namespace) -> Report:
    if args.metadata_only:
        return examine_metadata(args.root)
    if args.root.is_file():
        raise DatasetError(f"{args.root} is a file: give the folder of the benchmark, or add --metadata-only")
    return examine(args.root, splits=args.splits, num_frames=args.num_frames, num_workers=args.num_workers)


def _print_report(report: Report, args: argparse.Namespace) -> None:
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    facts = report.facts
    console.print(
        f"{facts.rows:,} rows, {facts.null_rows:,} of them null references ({facts.null_sentences} distinct sentences)"
    )
    console.print(_splits_table(report))
    if report.problems:
        console.print(_problems_table(report))
    num_errors = sum(problem.is_error for problem in report.problems)
    checked = "metadata.csv alone" if report.clips_checked is None else f"{report.clips_checked:,} clips"
    notes = len(report.problems) - num_errors
    console.print(f"Checked {checked}: {num_errors} kind(s) of errors, {notes} of notes.")


def _splits_table(report: Report) -> Table:
    table = Table("split", *(Column(name, justify="right") for name in ("rows", "media ids", "null rows")))
    for split, size in report.facts.splits.items():
        table.add_row(Text(_printable(split)), f"{size.rows:,}", f"{size.media_ids:,}", f"{size.null_rows:,}")
    return table


def _problems_table(report: Report) -> Table:
    table = Table("", "problem", "count", "first", "what to do", show_lines=True)
    for problem in report.problems:
        kind = PROBLEM_KINDS[problem.kind]
        severity = "error" if kind.is_error else "note"
        count = f"{problem.count:,} {kind.unit}{'' if problem.count == 1 else 's'}"
        cells = (severity, kind.title, count, _printable(problem.first), kind.advice)
        table.add_row(*(Text(cell, overflow="fold") for cell in cells))
    return table


def _printable(text: str) -> str:
    """The text without control characters, which could steer the terminal, and cut off where it is very long."""
    plain = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return plain if len(plain) <= MAX_EXAMPLE_LENGTH else plain[:MAX_EXAMPLE_LENGTH] + "..."


if __name__ == "__main__":
    sys.exit(main())
