"""What sub-commands build their argument parsers from."""

from __future__ import annotations

import argparse

#: What `ArgumentParser.add_subparsers` returns, and each sub-command's `register` gets.
Commands = argparse._SubParsersAction


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the description's lines and shows defaults."""


def positive(text: str) -> int:
    """The type of an argument that is a positive whole number."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number
