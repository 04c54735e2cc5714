"""What sub-commands build their argument parsers from."""

from __future__ import annotations

import argparse
from pathlib import Path

#: What `ArgumentParser.add_subparsers` returns, and each sub-command's `register` gets.
Commands = argparse._SubParsersAction


def add_family_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that names a family of models from outside the package."""
    parser.add_argument(
        "--family",
        metavar="NAME",
        help="family of a model that none here reads: path/to/file.py:Name, which runs",
    )


def positive(text: str) -> int:
    """The type of an argument that is a positive whole number."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def natural(text: str) -> int:
    """The type of an argument that is a whole number, 0 or more."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


def json_file(text: str) -> Path:
    """The type of an argument that names a JSON file; what lies beside it is named after it."""
    if Path(text).suffix != ".json":
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .json")
    return Path(text)
