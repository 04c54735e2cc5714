"""`aurora-rl recipes`: the packaged YAML files, to look at and to copy."""

from __future__ import annotations

import argparse
from pathlib import Path

from aurora_rl.cli.arguments import Commands
from aurora_rl.cli.console import CLEAN, refuse
from aurora_rl.files.atomic import write_whole
from aurora_rl.files.existing import check_new_file, did_you_mean
from aurora_rl.files.packaged import find_config, recipe_names
from aurora_rl.files.plain import read_text_file

DESCRIPTION = """List, show or copy the recipes that come with the package.

  aurora-rl recipes list
  aurora-rl recipes show ref_avs/grpo_7b
  aurora-rl recipes copy ref_avs/grpo_7b mine.yaml

A recipe's first comment says how it is started, on what hardware, and what was measured. `--config` of the other
commands takes the same names. Exit code 0: done, 2: there is no such recipe, or the copy's file exists."""


def register(commands: Commands) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("recipes", help="list, show or copy packaged recipes", description=DESCRIPTION)
    actions = parser.add_subparsers(
        required=True, metavar="ACTION", dest="action", help="what is done with the recipes"
    )
    actions.add_parser("list", help="list the names, each with what it is started by")
    show = actions.add_parser("show", help="print a recipe")
    copy = actions.add_parser("copy", help="copy a recipe to a file of your own")
    for action in (show, copy):
        action.add_argument("name", help="name of the recipe, such as ref_avs/grpo_7b")
    copy.add_argument("file", type=Path, nargs="?", help="file to write (default: the recipe's own name, here)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List, show or copy, and return the exit code."""
    try:
        if args.action == "list":
            print("\n".join(f"{name:<36}{_started_by(name)}" for name in recipe_names()))
        elif args.action == "show":
            print(_read(args.name), end="")
        else:
            print(f"{_copy(args.name, args.file)} is written")
    except (OSError, ValueError) as error:
        return refuse("recipes", error)
    return CLEAN


def _read(name: str) -> str:
    short = name.removeprefix("recipes/").removesuffix(".yaml")
    if short not in recipe_names():
        hint = did_you_mean(short, recipe_names())
        raise ValueError(f"there is no recipe {name!r}: `aurora-rl recipes list` names all{hint}")
    return read_text_file(find_config(f"recipes/{short}.yaml"))


def _copy(name: str, file: Path | None) -> Path:
    text = _read(name)
    file = file or Path(f"{Path(name).name.removesuffix('.yaml')}.yaml")
    if file.is_dir():
        file = file / f"{Path(name).name.removesuffix('.yaml')}.yaml"
    check_new_file(file, name="the file")
    write_whole(file, text)
    return file


def _started_by(name: str) -> str:
    """Return the script that a recipe's first comment names, as a command of `aurora-rl` where it is one."""
    first = _read(name).partition("\n")[0]
    script = next((word for word in first.split() if word.endswith(".py")), "")
    commands = {"sft": "sft", "grpo": "grpo", "evaluate": "evaluate", "run_stages": "stages"}
    known = commands.get(Path(script).stem)
    return f"aurora-rl {known}" if known else f"aurora-rl run {script}"
