"""`aurora-rl evaluate`: scores of a model's answers and masks, or of masks that any system saved."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from aurora_rl.assembly.early import check_asked, check_splits
from aurora_rl.assembly.known_options import SAVED_MASKS, Asked, options_of, read_asked
from aurora_rl.cli.arguments import Commands, positive
from aurora_rl.cli.checks import check_written_files
from aurora_rl.cli.console import CLEAN, open_console, printable, refuse
from aurora_rl.cli.launching import (
    add_launch_arguments,
    check_launch,
    check_not_launched,
    launch_script,
    wants_launch,
)
from aurora_rl.evaluation.presets import find_preset
from aurora_rl.evaluation.side_by_side import letter_rows, with_ablations
from aurora_rl.files.existing import check_existing, check_file, check_writable_folder
from aurora_rl.files.plain import parse_json, read_text_file

DESCRIPTION = """Score a model, or masks that any system saved, on a benchmark.

  aurora-rl evaluate --model DIR --data_root DIR --split test_s test_u --output_dir out
  aurora-rl evaluate --predictions DIR --data_root DIR --split test_s --output_dir out

With a model, options of recipes/evaluate.py may follow, --config FILE (or a packaged recipe's name) among them;
--launch multi_gpu spreads the rows over several GPUs. Predictions need no model: they are a folder of DIR/<row>.npz,
DIR/<row>/<frame>.png or DIR/<row>.json (COCO), where <row> is a row's number, its id, or its clip; or one COCO file.
Options of the data may follow, such as --benchmark; of Ref-AVSBench's layout only metadata.csv and gt_mask/ are read.
Either way scores.json holds the numbers and results.jsonl a line a row; see docs/evaluation.md.
Exit code 0: scored, 2: unusable arguments, data or predictions."""


DEFAULT_PRESET, DEFAULT_BENCHMARK = "refavs", "ref_avs"
KEYED_BY = ("auto", "row", "id")  # as `evaluation.mask_names` has them, which imports torch
#: The columns of the printed table where masks are scored, as in scores.json; otherwise it has all.
NAMES = ("n", "missing", "J", "F", "J&F", "n_null", "S", "S_per_frame", "null_accuracy", "false_alarm_rate")


#: Columns of data sets that are answered in words, beside others of masks.
OF_WORDS = ("accuracy", "readable")


def register(commands: Commands) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "evaluate",
        help="score a model or saved masks",
        description=DESCRIPTION,
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", help="folder or hub name of a trained model")
    source.add_argument(
        "--predictions",
        type=Path,
        metavar="PATH",
        help="folder of saved masks as npz, PNG or COCO files, or a COCO file",
    )
    source.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="results.jsonl of an earlier evaluation, whose masks are scored again",
    )
    parser.add_argument("--data_root", type=Path, help="folder that holds the benchmark")
    parser.add_argument(
        "--split", nargs="+", metavar="SPLIT", help="splits that are scored (default: all that begin with 'test')"
    )
    parser.add_argument("--preset", help="rules of scoring: refavs, avsbench, aurora or davis (default: refavs)")
    parser.add_argument("--output_dir", type=Path, help="folder for scores.json and for results.jsonl, a line a row")
    parser.add_argument("--output", type=_refuse_output, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, metavar="FILE", help="HTML page of the scores, to write as well")
    parser.add_argument("--num_workers", type=positive, default=1, help="number of processes that score saved masks")
    parser.add_argument(
        "--chains", type=Path, metavar="FILE", help="JSONL file with chains of thought, which may tell reference types"
    )
    parser.add_argument(
        "--keyed_by",
        choices=KEYED_BY,
        default="auto",
        help="what saved masks are named by: the row's number or its id; found out where no name can mean both",
    )
    add_launch_arguments(parser, default="this process alone")
    parser.set_defaults(run=run, options=[])


def _refuse_output(path: str) -> None:
    raise argparse.ArgumentTypeError(f"it is --output_dir now, a folder for scores.json and results.jsonl, not {path}")


def run(args: argparse.Namespace) -> int:
    """Score, write the files, print the table to stdout and return the exit code."""
    from aurora_rl.files.output_lock import hold_output

    try:
        is_of_model = args.predictions is args.results is None
        if is_of_model:
            if args.keyed_by != "auto":
                raise ValueError("--keyed_by is of saved masks: give --predictions, or leave it out")
            asked = read_asked("recipes/evaluate.py", _recipe_words(args))
            find_preset(asked.get("preset", DEFAULT_PRESET))
            check_asked(asked)
            if wants_launch(args) or asked.get("dry_run"):
                return _launch(args, asked)
        else:
            check_not_launched(args)
            _check_saved(args)
        check_written_files(args, "report")
        with contextlib.ExitStack() as stack:
            if args.output_dir:  # before the imports, which take seconds, so that a second run is told at once
                is_main_process = os.environ.get("RANK", "0") == "0"
                stack.enter_context(hold_output(args.output_dir, is_folder=True, is_main_process=is_main_process))
            tables = _evaluate_model(args) if is_of_model else _rescore(args)
            if args.report and tables:
                from aurora_rl.evaluation.records import SCORES_FILE, read_results
                from aurora_rl.report.score_page import write_score_page

                for name in tables.get("datasets", [""]):
                    page, folder = _page_of(args.report, name), args.output_dir / name
                    own = tables if not name else parse_json(read_text_file(folder / SCORES_FILE))
                    write_score_page(page, own, read_results(folder))
    except (OSError, ValueError) as error:
        return refuse("evaluate", error)
    if tables:
        print_scores(tables)
    return CLEAN


def _launch(args: argparse.Namespace, asked: Asked) -> int:
    """Score in several processes, or only try to, and return the exit code."""
    if args.report:
        raise ValueError(
            "--report is written by one process: leave --launch out, or make it of the results afterwards by "
            "`aurora-rl evaluate --results FILE --report FILE`"
        )
    check_launch(args.launch)
    return launch_script("recipes/evaluate.py", _recipe_words(args), args, asked, several="multi_gpu")


def _page_of(report: Path, dataset: str) -> Path:
    """The page of one of several data sets: scores.html becomes scores.<its name>.html."""
    return report.with_name(f"{report.stem}.{dataset}{report.suffix}") if dataset else report


def _check_saved(args: argparse.Namespace) -> None:
    for word in args.options:
        name = word.lstrip("-").partition("=")[0]
        if word.startswith("--") and name not in options_of(SAVED_MASKS) and name in options_of("recipes/evaluate.py"):
            raise ValueError(f"{word} is an option for a model: leave it out, or give --model")
    if args.data_root is None or args.output_dir is None:
        raise ValueError("saved masks need --data_root DIR and --output_dir DIR")
    find_preset(args.preset or DEFAULT_PRESET)
    for name in ("predictions", "results"):
        if getattr(args, name) is not None:
            check_existing(getattr(args, name), name=f"--{name}")
    if args.chains is not None:
        check_file(args.chains, name="--chains")
    asked = _asked_data(args)
    check_asked(asked)
    benchmark = asked.get("benchmark", DEFAULT_BENCHMARK)
    if ":" not in benchmark:  # a loader of one's own names its own splits
        check_splits(benchmark, args.data_root, args.split or [], name="--split")
    check_writable_folder(args.output_dir, name="--output_dir")


def _asked_data(args: argparse.Namespace) -> Asked:
    """The options that say which data saved masks are scored on."""
    chains = [] if args.chains is None else ["--chains", str(args.chains.resolve())]
    return read_asked(SAVED_MASKS, [*args.options, "--data_root", str(args.data_root), *chains])


def _rescore(args: argparse.Namespace) -> dict[str, Any]:
    # Here, because it imports torch, which takes seconds.
    from aurora_rl.assembly.arguments import DataArguments
    from aurora_rl.evaluation.of_saved_masks import rescore, saved_predictions, saved_results

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    preset = args.preset or DEFAULT_PRESET
    predictions = saved_results(args.results, preset=preset) if args.results else saved_predictions(args.predictions)
    return rescore(
        DataArguments(**{name: value for name, value in _asked_data(args).values.items() if value is not None}),
        predictions,
        args.output_dir,
        splits=args.split or [],
        preset=preset,
        num_workers=args.num_workers,
        keyed_by=args.keyed_by,
    )


def _evaluate_model(args: argparse.Namespace) -> dict[str, Any] | None:
    """The content of scores.json; None in a process that only helps the main one."""
    # Here, because these import torch and transformers, which take seconds.
    from aurora_rl.assembly.arguments import DataArguments, ModelArguments
    from aurora_rl.assembly.parser import RecipeParser
    from aurora_rl.evaluation.of_model import EvaluationArguments, evaluate_model

    parser = RecipeParser((ModelArguments, DataArguments, EvaluationArguments), prog="aurora-rl evaluate")
    model_args, data_args, evaluation_args = parser.parse_args_and_config(_recipe_words(args))
    args.output_dir = evaluation_args.folder
    return evaluate_model(model_args, data_args, evaluation_args)


def _recipe_words(args: argparse.Namespace) -> list[str]:
    """The command line of recipes/evaluate.py that does the same."""
    options = {
        "model": args.model,
        "data_root": args.data_root,
        "split": args.split,
        "preset": args.preset,
        "output_dir": args.output_dir,
        "chains": args.chains and args.chains.resolve(),
    }
    command = list(args.options)
    for name, value in options.items():
        if value is not None:
            command += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
    return command


def print_scores(tables: Mapping[str, Any]) -> None:
    """The numbers of scores.json as tables on stdout; under each number the same with something taken away."""
    console = open_console()
    splits, intervals = with_ablations(tables, "splits"), with_ablations(tables, "intervals", "splits")
    known = dict.fromkeys(name for split in splits.values() for name in split)
    has_masks = "missing" in known
    names = [name for name in (*NAMES, *OF_WORDS) if name in known] if has_masks else list(known)
    head = f"preset {tables['preset']}" if has_masks else "split"
    table = _score_table(head, names, splits, intervals)
    for definition, numbers in tables["mix"].items():
        if numbers:
            table.add_row(f"Mix, {definition}", *(_cell(numbers.get(name)) for name in names))
    console.print(table)
    if letters := letter_rows(tables):
        _print_answers(console, tables, letters)
    for name, of_ablation in tables.get("ablations", {}).items():
        if of_ablation["unchanged"]:
            console.print(f"{name}: {of_ablation['unchanged']:,} rows lack it, its numbers leave them out.")
    if "note" in tables:
        console.print(f"Note: {tables['note']}.")


def _print_answers(console: Console, tables: Mapping[str, Any], letters: Mapping[str, Mapping[str, int]]) -> None:
    """Multiple choice by kind of question and by the right option's letter, and the letters that were chosen."""
    for head, name in (("question", "by_reference_type"), ("right letter", "by_letter")):
        groups, intervals = (with_ablations(tables, path, name) for path in ("tables", "intervals"))
        console.print(_score_table(head, ["n", "accuracy", "unreadable"], groups, intervals))
    columns = list(dict.fromkeys(column for counts in letters.values() for column in counts))
    table = Table("letter", *(Column(printable(name), justify="right") for name in columns))
    for name, counts in letters.items():
        table.add_row(Text(printable(name)), *(_cell(counts.get(column)) for column in columns))
    console.print(table)


def _score_table(
    head: str, names: Sequence[str], groups: Mapping[str, Any], intervals: Mapping[str, Mapping[str, Any]]
) -> Table:
    """Rows of groups; the accuracy alone has its interval, as others would not fit."""
    table = Table(head, *(Column(printable(name), justify="right") for name in names))
    for group, numbers in groups.items():
        cells = [_cell(numbers.get(name)) for name in names]
        if "accuracy" in names and (interval := intervals.get(group, {}).get("accuracy")):
            cells[names.index("accuracy")] += f" [{interval['low']:.3f}, {interval['high']:.3f}]"
        table.add_row(Text(printable(group)), *cells)
    return table


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
