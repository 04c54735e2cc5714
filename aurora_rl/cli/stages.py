"""`aurora-rl stages`: the stages of a file, one after the other, each as soon as what it needs is complete."""

from __future__ import annotations

from functools import partial

from aurora_rl.cli.arguments import Commands
from aurora_rl.scripts import run_stages

DESCRIPTION = """Run the stages of a file: a complete stage is checked and skipped, an interrupted one is resumed.

  aurora-rl stages --config synthetic/smoke --until report
  aurora-rl stages --config ref_avs/stages_7b --launch zero3 --list

It is `python recipes/run_stages.py`. Scripts, configs and launch configs that a file names by their paths in the
project (recipes/sft.py) are the packaged ones, where the working directory has no such file. Exit code 0: all complete,
1: a stage failed, 2: unusable file, 128 and a signal's number: stopped; the same command resumes."""


def register(commands: Commands) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("stages", help="run a chain of trainings and evaluations", description=DESCRIPTION)
    run_stages.add_arguments(parser)
    parser.set_defaults(run=partial(run_stages.run_file, program="aurora-rl stages"))
