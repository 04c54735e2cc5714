"""`aurora-rl sft` and `aurora-rl grpo`: a training, checked once and then started in all its processes."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial

from aurora_rl.assembly.early import check_asked
from aurora_rl.assembly.known_options import read_asked
from aurora_rl.cli.arguments import Commands
from aurora_rl.cli.console import refuse
from aurora_rl.cli.launching import add_launch_arguments, check_launch, launch_script
from aurora_rl.files.packaged import packaged_root

DESCRIPTION = """{what}

  aurora-rl {name} --config {name}.yaml
  aurora-rl {name} --config {example} --data_root data/ref_avs --launch zero2
  aurora-rl {name} --config {name}.yaml --dry_run

It is `accelerate launch ... recipes/{name}.py`, from an install as from a checkout: --config names a file or a packaged
recipe (`aurora-rl recipes list`), each key of which is an option as well; --KEY null unsets one. Wrong input is told
before a process is started. The exit code is the training's, 2: unusable arguments."""

#: What each training is, and a packaged recipe of it.
TRAININGS = {
    "sft": ("Fine-tune a model on chains of thought or answers, and masks.", "ref_avs/sft_7b"),
    "grpo": ("Train a model by GRPO with rewards on its text and masks.", "ref_avs/grpo_7b"),
}
#: Config for several GPUs where none is named: adapters of LoRA or smaller models, whole on each GPU.
SEVERAL_GPUS = "zero2"


def register(commands: Commands) -> None:
    """Add the sub-commands."""
    for name, (what, example) in TRAININGS.items():
        parser = commands.add_parser(
            name,
            help=what[0].lower() + what[1:].removesuffix("."),
            description=DESCRIPTION.format(what=what, name=name, example=example),
        )
        add_config_argument(parser)
        add_launch_arguments(parser, default=f"cpu without a GPU, single_gpu with one, {SEVERAL_GPUS} with several")
        parser.set_defaults(run=partial(run, name), options=[])


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that starts a recipe."""
    parser.add_argument("--config", help="YAML file, or the name of a packaged recipe such as ref_avs/sft_7b")
    parser.add_argument("--help_keys", action="store_true", help="show all keys of the recipe with their meaning")


def run(name: str, args: argparse.Namespace) -> int:
    """Check a training's command line, start it, and return its exit code."""
    script = f"recipes/{name}.py"
    if args.help_keys:
        show_keys(script)
    words = [*([] if args.config is None else ["--config", args.config]), *args.options]
    try:
        asked = read_asked(script, words)
        check_asked(asked)
        check_launch(args.launch)
        return launch_script(script, words, args, asked, several=SEVERAL_GPUS)
    except (OSError, ValueError) as error:
        return refuse(name, error)


def show_keys(script: str) -> None:
    """Become the recipe's own help."""
    os.execv(sys.executable, [sys.executable, str(packaged_root() / script), "--help"])
