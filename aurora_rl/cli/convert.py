"""`aurora-rl convert`: a benchmark, a COCO file or a folder of DAVIS as a manifest or as a Hugging Face dataset."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from aurora_rl.assembly.early import check_benchmark
from aurora_rl.cli.arguments import Commands
from aurora_rl.cli.console import CLEAN, refuse
from aurora_rl.data.splits import SPLIT_READERS, list_splits
from aurora_rl.files.existing import check_existing, check_file, check_folder, did_you_mean

if TYPE_CHECKING:
    from aurora_rl.assembly.arguments import DataArguments
    from aurora_rl.data.sample import AVSample

DESCRIPTION = """Write a data set in a form that needs no benchmark's code.

  aurora-rl convert --from ref_avs --data_root data/ref_avs --to manifest --output_dir data/my_clips
  aurora-rl convert --from davis --data_root DAVIS --sentences Davis17_annot1.txt --to hf --output_dir data/davis_hf
  aurora-rl convert --from coco --data_root instances.json --frames JPEGImages --to manifest --output_dir data/objects

manifest: manifest.jsonl and the files that it names, read by `benchmark: clips`; with --output_dir the benchmark's own
folder nothing is copied. hf: Parquet tables that hold the media and a card, read by `benchmark: hf_dataset` and by
`datasets.load_dataset`. Options of a data set may follow, such as --chains FILE; see docs/own_data.md. Exit code 0:
written, 2: unusable arguments or data."""

COCO, DAVIS = "coco", "davis"
#: Splits of a benchmark that are no data.
NO_DATA = ("TODO",)


def register(commands: Commands) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("convert", help="write a data set in another form", description=DESCRIPTION)
    known = ", ".join((*SPLIT_READERS, COCO, DAVIS))
    parser.add_argument(
        "--from", dest="source_form", required=True, metavar="FORM", help=f"{known}, or path/to/mine.py:load"
    )
    parser.add_argument("--to", choices=("manifest", "hf"), required=True, help="form that is written")
    parser.add_argument("--data_root", required=True, help="folder of the data set; of coco the JSON file")
    parser.add_argument(
        "--output_dir", "-o", type=Path, required=True, help="folder that is written; it must not exist"
    )
    parser.add_argument("--split", nargs="+", metavar="SPLIT", help="splits that are written (default: all)")
    parser.add_argument(
        "--mask_cache", type=Path, metavar="DIR", help="folder for masks that are no files of their own"
    )
    parser.add_argument("--frames", type=Path, metavar="DIR", help="folder of the pictures or videos, with coco")
    parser.add_argument("--sentences", type=Path, metavar="FILE", help="file of sentences on the objects, with davis")
    parser.add_argument("--links", action="store_true", help="make hard links instead of copies, with manifest")
    hub = parser.add_argument_group("with --to hf, for the card")
    hub.add_argument("--title", help="title of the data set")
    hub.add_argument("--source", help="address that the data set comes from")
    hub.add_argument("--license", help="licence of the data set, as the hub abbreviates it")
    parser.set_defaults(run=run, options=[])


def run(args: argparse.Namespace) -> int:
    """Write the folder and return the exit code."""
    try:
        _check(args)
    except (OSError, ValueError) as error:
        return refuse("convert", error)
    # Here, because it imports torch, which takes seconds.
    from aurora_rl.data.containers import MediaError
    from aurora_rl.files.output_lock import OutputInUseError

    try:
        return _convert(args)
    except (OSError, ValueError, MediaError, OutputInUseError) as error:
        return refuse("convert", error)


def _check(args: argparse.Namespace) -> None:
    form = args.source_form
    if form not in (COCO, DAVIS):
        known = (*SPLIT_READERS, COCO, DAVIS)
        if ":" not in form and form not in known:
            raise ValueError(f"--from is {form!r}: choose from {', '.join(known)}{did_you_mean(form, known)}")
        check_benchmark(form, name="--from")
        if ":" in form and not args.split:
            raise ValueError("a loader of your own does not tell its splits: name them by --split")
    check_root = check_file if form == COCO else check_existing if form == "clips" else check_folder
    if ":" not in form:  # a loader of one's own is handed whatever it understands
        check_root(args.data_root, name="--data_root")
    for name, only in {"frames": COCO, "sentences": DAVIS}.items():
        if getattr(args, name) is not None:
            if form != only:
                raise ValueError(f"--{name} is of --from {only}: leave it out")
            (check_folder if name == "frames" else check_file)(getattr(args, name), name=f"--{name}")
    of_hub = [name for name in ("title", "source", "license") if getattr(args, name) is not None]
    if args.to == "manifest" and of_hub:
        raise ValueError(f"--{of_hub[0]} is of --to hf: leave it out")
    if args.to == "hf" and args.links:
        raise ValueError("--links is of --to manifest: tables hold their media")


def _convert(args: argparse.Namespace) -> int:
    from aurora_rl.assembly.arguments import DataArguments
    from aurora_rl.assembly.parser import ConfigParser
    from aurora_rl.export.manifest_folder import write_manifest
    from aurora_rl.files.cache_folder import cache_folder
    from aurora_rl.logs import setup_logging

    setup_logging()
    cache = str(args.mask_cache or cache_folder("masks"))
    words = ["--data_root", str(args.data_root), "--mask_cache", cache, *args.options]
    if args.source_form not in (COCO, DAVIS):
        words += ["--benchmark", args.source_form]
    (data_args,) = ConfigParser((DataArguments,), prog="aurora-rl convert").parse_args_and_config(words)
    if not _is_given(args, "num_frames"):
        data_args.num_frames = None  # clips are written whole
    load, splits = _loader(args, data_args)
    if args.to == "hf":
        from aurora_rl.scripts.to_hf_dataset import ExportArguments, export

        card = ExportArguments(str(args.output_dir), splits, args.title, args.source, args.license)
        export(data_args, card, load=load, source_form=args.source_form)
        return CLEAN
    samples = [sample for split in splits for sample in load(data_args, split)]
    root = Path(args.data_root)
    count = write_manifest(samples, args.output_dir, root=root if root.is_dir() else root.parent, links=args.links)
    print(f"{args.output_dir}: {len(samples)} rows, {count} files; read it by benchmark: clips")
    return CLEAN


def _loader(
    args: argparse.Namespace, data_args: DataArguments
) -> tuple[Callable[[DataArguments, str], list[AVSample]], list[str]]:
    """Return the function that lists the samples of a split, and the splits that are written."""
    from aurora_rl.assembly.benchmarks import load_split
    from aurora_rl.data.coco_videos import load_coco
    from aurora_rl.data.davis import FPS, list_davis_splits, load_davis

    cache = data_args.mask_cache or ""
    if args.source_form == COCO:
        splits = args.split or ["train"]
        if len(splits) > 1:
            raise ValueError("a COCO file has no splits: name the one that its rows get")
        return lambda of, split: load_coco(
            of.data_root, split, mask_cache=cache, frames=args.frames, fps=of.fps
        ), splits
    if args.source_form == DAVIS:
        rate = data_args.fps if _is_given(args, "fps") else FPS
        return lambda of, split: load_davis(
            of.data_root, split, mask_cache=cache, fps=rate, sentences=args.sentences
        ), args.split or list_davis_splits(args.data_root)
    found = args.split or [split for split in list_splits(args.source_form, args.data_root) if split not in NO_DATA]
    return load_split, found


def _is_given(args: argparse.Namespace, name: str) -> bool:
    return any(word.partition("=")[0] == f"--{name}" for word in args.options)
