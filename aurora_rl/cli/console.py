"""What sub-commands say: exit codes, complaints on stderr, and text that comes from files."""

from __future__ import annotations

import sys

from rich.console import Console

CLEAN, PROBLEMS, UNUSABLE = 0, 1, 2  # exit codes; argparse, too, exits with 2
PIPE_WIDTH = 160  # columns of a table that does not go to a terminal
MAX_TEXT_LENGTH = 400  # characters; a broken table can hold fields of any length


def refuse(command: str, error: Exception) -> int:
    """Complain about arguments or files that cannot be used, and return the exit code that says so."""
    print(f"aurora-rl {command}: {printable(str(error))}", file=sys.stderr)
    return UNUSABLE


def open_console() -> Console:
    """Where tables are printed: stdout, with nothing in a text taken for markup."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def printable(text: str) -> str:
    """The text without control characters, which could steer the terminal, and cut off where it is very long."""
    plain = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return plain if len(plain) <= MAX_TEXT_LENGTH else plain[:MAX_TEXT_LENGTH] + "..."
