"""The command `aurora-rl`: a thin layer of arguments and text over the package.

aurora-rl grpo --config ref_avs/grpo_7b --launch zero2
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

from aurora_rl import __version__
from aurora_rl.assembly.options import OptionParser
from aurora_rl.cli import (
    agents,
    compare,
    completion,
    convert,
    demo,
    doctor,
    evaluate,
    export,
    footprint,
    init,
    recipes,
    run_script,
    segment,
    serve,
    stages,
    train,
)
from aurora_rl.cli.arguments import Commands
from aurora_rl.cli.console import CLEAN

SUB_COMMANDS = (
    demo,
    init,
    train,
    stages,
    run_script,
    recipes,
    doctor,
    evaluate,
    compare,
    footprint,
    export,
    convert,
    segment,
    agents,
    serve,
    completion,
)
#: Commands by what one wants to do, for the list that `aurora-rl` prints; others come last.
GOALS = {
    "take a first look": ("demo",),
    "begin with clips of your own": ("doctor", "init", "convert"),
    "train": ("recipes", "footprint", "sft", "grpo", "stages", "run"),
    "score": ("evaluate", "compare"),
    "use a model": ("segment", "serve", "export"),
    "segment without training": ("agents",),
}


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
    parser, _ = _build_parser()
    args, options = parser.parse_known_args(argv)
    if options and "options" not in args:
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    args.options = options
    return args


def overview() -> str:
    """Return the list of commands by what one wants to do."""
    _, commands = _build_parser()
    helps = {action.dest: str(action.help) for action in commands._choices_actions}
    rest = tuple(name for name in helps if not any(name in names for names in GOALS.values()))
    lines = ["usage: aurora-rl COMMAND ...", ""]
    for goal, names in {**GOALS, "other": rest}.items():
        lines += [f"{goal}:", *(f"  {name:<12}{helps[name]}" for name in names), ""]
    return "\n".join([*lines, "`aurora-rl COMMAND --help` says more; `aurora-rl --version` which version this is."])


def _print_overview(_args: argparse.Namespace) -> int:
    print(overview())
    return CLEAN


def _build_parser() -> tuple[OptionParser, Commands]:
    parser = OptionParser(prog="aurora-rl", description="The commands of Aurora-RL.")
    parser.add_argument("--version", action="version", version=f"aurora-rl {__version__}")
    parser.set_defaults(run=_print_overview)
    commands = parser.add_subparsers(metavar="COMMAND")
    for sub_command in SUB_COMMANDS:
        sub_command.register(commands)
    return parser, commands
