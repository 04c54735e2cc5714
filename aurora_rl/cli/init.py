"""`aurora-rl init`: recipes to start from, for clips of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path

from aurora_rl.assembly.early import check_model
from aurora_rl.cli.arguments import Commands
from aurora_rl.cli.checks import check_positive
from aurora_rl.cli.console import CLEAN, PROBLEMS, refuse
from aurora_rl.data.clip_sources import is_table
from aurora_rl.files.existing import check_existing, check_new_file
from aurora_rl.models.mllm import FAMILIES

MODEL = FAMILIES[0].hub_model
DESCRIPTION = f"""Write commented recipes for a manifest of your own clips: sft.yaml, grpo.yaml and evaluate.yaml.

  aurora-rl init --data clips.csv
  aurora-rl init --data clips/ --model {MODEL} --gpus 4 --gpu_memory_gb 40 --output_dir recipes

The manifest is read with all files that it names. Batch sizes, LoRA and the launch config are those that fit by the
estimate of `aurora-rl footprint` into the GPUs that are here, or into those that are named. A file that exists is not
replaced. Exit code 0: written, 1: written, but the smallest choice does not fit into memory, 2: unusable manifest."""

KINDS = ("sft", "grpo", "evaluate")


def register(commands: Commands) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("init", help="write recipes for clips of your own", description=DESCRIPTION)
    parser.add_argument(
        "--data", required=True, metavar="MANIFEST", help="a manifest or its folder, or a data set of datasets"
    )
    parser.add_argument("--model", default=MODEL, help="folder or hub name of the model to start from")
    parser.add_argument("--output_dir", "-o", type=Path, default=Path(), help="folder for the recipes")
    parser.add_argument("--gpus", type=int, metavar="N", help="number of GPUs, 0 for the CPU (default: those here)")
    parser.add_argument("--gpu_memory_gb", type=float, help="memory of one GPU in GB (default: that of those here)")
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="NAME=THEIRS", help="names of columns, such as reference=caption"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the recipes, print how they are started, and return the exit code."""
    files = {kind: args.output_dir / f"{kind}.yaml" for kind in KINDS}
    try:
        _check(args, files)
        return _write(args, files)
    except (OSError, ValueError) as error:
        return refuse("init", error)


def _check(args: argparse.Namespace, files: dict[str, Path]) -> None:
    if not is_table(args.data):
        check_existing(args.data, name="--data")
    check_model(args.model, name="--model")
    check_positive(args, "gpu_memory_gb")
    if args.gpus is not None and args.gpus < 0:
        raise ValueError(f"--gpus is {args.gpus}: expected a number of GPUs, 0 for the CPU")
    for pair in args.columns:
        if not all(pair.partition("=")):
            raise ValueError(f"--columns has {pair!r}: write NAME=THEIRS, such as reference=caption")
    for file in files.values():
        check_new_file(file, name="the recipe")


def _write(args: argparse.Namespace, files: dict[str, Path]) -> int:
    # Here, because these import torch and transformers, which take seconds.
    import torch

    from aurora_rl.files.atomic import write_whole
    from aurora_rl.footprint.limits import host_memory
    from aurora_rl.scripts.own_clips import read_own_clips
    from aurora_rl.scripts.starting_recipes import Machine, Model, write_recipe

    num_gpus = torch.cuda.device_count() if args.gpus is None else args.gpus
    here = torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.device_count() else 80.0
    machine = Machine(num_gpus, args.gpu_memory_gb or here, host_memory() / 1e9)
    clips = read_own_clips(args.data, dict(pair.split("=", 1) for pair in args.columns))
    model = Model.read(args.model).for_clips(args.data, clips)
    recipes = {kind: write_recipe(kind, args.data, clips, model, machine, str(files[kind])) for kind in KINDS}
    for kind, file in files.items():
        write_whole(file, recipes[kind].text)
    print("\n".join(clips.describe()))
    print(f"{', '.join(map(str, files.values()))} are written for {machine}. Look at them, then:\n")
    print("\n".join(f"  {recipe.command}{' --dry_run' * (kind == 'sft')}" for kind, recipe in recipes.items()))
    problems = [f"{files[kind]}: {recipe.problem}" for kind, recipe in recipes.items() if recipe.problem]
    print("".join(f"\n{problem}\n" for problem in problems), end="")
    if model.unread:
        print(f"\nThe model's size is not known, so no memory is estimated: {model.unread}")
    return PROBLEMS if problems else CLEAN
