"""The command `aurora-rl`: tools that need no recipe. A thin layer of arguments and text over the package.

aurora-rl doctor data/ref_avs --num_workers 8
aurora-rl evaluate --predictions masks --data_root data/ref_avs --split test_s --output_dir out
aurora-rl footprint grpo --config recipes/ref_avs/grpo_7b.yaml --launch accelerate_configs/zero2.yaml
aurora-rl segment clip.mp4 "the drum" --model outputs/demo/grpo -o out
aurora-rl serve --model outputs/demo/grpo

A sub-command is a module here with a function `register`, and a name in `SUB_COMMANDS`. All of them are imported at
every start, so a module imports what takes seconds (torch, transformers) where it is used.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from aurora_rl.assembly.options import OptionParser
from aurora_rl.cli import compare, doctor, evaluate, export, footprint, segment, serve

SUB_COMMANDS = (
    doctor,
    evaluate,
    compare,
    footprint,
    export,
    segment,
    serve,
)


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
    parser = OptionParser(prog="aurora-rl", description="Tools of Aurora-RL.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for sub_command in SUB_COMMANDS:
        sub_command.register(commands)
    args, options = parser.parse_known_args(argv)
    if options and "options" not in args:
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    args.options = options
    return args
