"""`aurora-rl agents`: references are segmented by agents of a chat endpoint and a segmenter of noun phrases."""

from __future__ import annotations

import argparse

from aurora_rl.assembly.early import check_asked
from aurora_rl.assembly.known_options import read_asked
from aurora_rl.cli.arguments import Commands
from aurora_rl.cli.console import refuse
from aurora_rl.cli.train import show_keys

SCRIPT = "recipes/agents.py"
DESCRIPTION = """Let agents that a chat endpoint plays find what references point at; nothing is trained.

  aurora-rl agents --config agents/ref_avs --data_root data/ref_avs --model NAME --base_url http://localhost:8000/v1

It is `python recipes/agents.py`: --config names a file or a packaged recipe, each key of which is an option as well.
The same command resumes. Exit code 0: every row was asked about, 1: the run ended early, 2: unusable arguments."""


def register(commands: Commands) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("agents", help="segment by agents of a chat endpoint", description=DESCRIPTION)
    parser.add_argument("--config", help="YAML file, or the name of a packaged recipe such as agents/ref_avs")
    parser.add_argument("--help_keys", action="store_true", help="show all keys of the recipe with their meaning")
    parser.set_defaults(run=run, options=[])


def run(args: argparse.Namespace) -> int:
    """Check the command line, let the agents work, and return the exit code."""
    if args.help_keys:
        show_keys(SCRIPT)
    words = [*([] if args.config is None else ["--config", args.config]), *args.options]
    try:
        check_asked(read_asked(SCRIPT, words))
    except (OSError, ValueError) as error:
        return refuse("agents", error)
    from aurora_rl.scripts.agents import main  # imports torch, which takes seconds

    return main(words)
