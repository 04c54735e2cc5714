"""`aurora-rl footprint`: what a recipe's run takes of a GPU, before there is one."""

from __future__ import annotations

import argparse

from aurora_rl.assembly.early import check_models, check_numbers
from aurora_rl.assembly.known_options import read_asked
from aurora_rl.cli.arguments import Commands, natural, positive
from aurora_rl.cli.checks import check_positive
from aurora_rl.cli.console import CLEAN, PROBLEMS, refuse
from aurora_rl.cli.launching import check_launch
from aurora_rl.files.packaged import find_launch

DESCRIPTION = """Estimate memory and operations of a recipe's run from its config: no GPU, no weights and no data.

Options of the recipe may follow, such as --model DIR for a folder with a config.json. Exit code 0: printed, and it
fits where a memory is given, 1: it does not fit, 2: unusable arguments."""


def register(commands: Commands) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "footprint",
        help="estimate a run's memory",
        description=DESCRIPTION,
    )
    parser.add_argument("recipe", choices=("sft", "grpo", "evaluate"), help="recipe whose arguments the config holds")
    parser.add_argument("--config", required=True, help="YAML file of the recipe's run")
    parser.add_argument(
        "--launch",
        type=find_launch,
        metavar="FILE",
        help="config of `accelerate launch`, or a packaged one's name (default: one GPU)",
    )
    parser.add_argument("--processes", type=positive, help="number of processes (default: the launch config's)")
    parser.add_argument("--machines", type=positive, help="number of machines (default: the launch config's)")
    parser.add_argument("--zero", type=int, choices=range(4), help="ZeRO stage (default: the launch config's)")
    parser.add_argument("--clips", type=positive, help="number of clips of the benchmark, for the embedding cache")
    parser.add_argument(
        "--frame_size", type=positive, nargs=2, metavar=("H", "W"), help="height and width of the frames, in pixels"
    )
    parser.add_argument(
        "--frames", type=natural, help="frames of the longest clip, 0 for sound alone (default: num_frames, or 10)"
    )
    parser.add_argument("--seconds", type=float, help="length of the longest sound (default: the frames', or 10)")
    parser.add_argument("--gpu_memory_gb", type=float, help="memory of one GPU in GB; vLLM takes its share of it")
    parser.add_argument("--host_memory_gb", type=float, help="memory of one machine in GB, which its processes share")
    parser.add_argument(
        "--tflops", type=float, help="peak operations of the device in TFLOP/s, from which a time is estimated"
    )
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of the peak operations that is reached")
    parser.set_defaults(run=run, options=[])


def run(args: argparse.Namespace) -> int:
    """Estimate a recipe's run, print the table to stdout and return the exit code."""
    try:
        _check(args)
        # Here, because these import torch and transformers, which take seconds.
        from aurora_rl.footprint.by_hand import estimate_recipe

        text, fits = estimate_recipe(args)
    except (OSError, ValueError) as error:
        return refuse("footprint", error)
    print(text)
    return CLEAN if fits else PROBLEMS


def _check(args: argparse.Namespace) -> None:
    check_positive(args, "seconds", "gpu_memory_gb", "host_memory_gb", "tflops")
    if not 0 < args.utilisation <= 1:
        raise ValueError(f"--utilisation is {args.utilisation}: expected a share above 0, at most 1")
    asked = read_asked(f"recipes/{args.recipe}.py", ["--config", args.config, *args.options])
    check_numbers(asked)
    check_models(asked)
    check_launch(args.launch)
