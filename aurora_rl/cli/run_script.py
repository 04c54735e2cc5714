"""`aurora-rl run`: a packaged script that has no command of its own."""

from __future__ import annotations

import argparse
import os
import sys

from aurora_rl.assembly.known_options import Asked
from aurora_rl.cli.arguments import Commands
from aurora_rl.cli.console import refuse
from aurora_rl.cli.launching import add_launch_arguments, check_launch, launch_script, wants_launch
from aurora_rl.files.existing import did_you_mean
from aurora_rl.files.packaged import packaged_root, script_names

DESCRIPTION = """Run a script that comes with the package, as `python SCRIPT ...` does in a checkout.

  aurora-rl run data_prep/make_synthetic.py --output_dir data/synthetic
  aurora-rl run --launch multi_gpu data_prep/collect_mistakes.py --config ref_avs/mistakes_7b
  aurora-rl run recipes/init_tiny.py --help

Options before the script are those below, all after it are its own. The exit code is the script's, 2: unusable
arguments."""


def register(commands: Commands) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("run", help="run a packaged script of data_prep/ or recipes/", description=DESCRIPTION)
    add_launch_arguments(parser, default="one process")
    parser.add_argument("script", metavar="SCRIPT", help=f"one of {', '.join(script_names())}")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help="options of the script")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Become the script, or start it in several processes and return the exit code."""
    try:
        if args.script not in script_names():
            hint = did_you_mean(args.script, script_names()) or f": choose from {', '.join(script_names())}"
            raise ValueError(f"there is no script {args.script!r}{hint}")
        check_launch(args.launch)
        if wants_launch(args):
            return launch_script(args.script, args.words, args, Asked(args.script, {}), several="multi_gpu")
    except (OSError, ValueError) as error:
        return refuse("run", error)
    os.execv(sys.executable, [sys.executable, str(packaged_root() / args.script), *args.words])
