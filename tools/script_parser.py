"""The parser of a script, taken when the script starts to read its command line.

The documentation's list of keys is made from it, and the tests check the documentation's commands by it: both get the
parser that a user's command gets, however the script builds it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]


class ParserReached(BaseException):
    """Stops a script at its parser; it is no `Exception`, so that the script does not catch it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


@functools.cache
def script_parser(script: str, *words: str) -> argparse.ArgumentParser:
    """Run a script up to its command line; the parser is a `TrlParser` if its arguments are dataclasses.

    Args:
        script: path of the script relative to the repository's root, such as `recipes/sft.py`.
        words: words of its command line, where it reads none without any.

    Raises:
        ValueError: if it reads no command line.
    """

    def stop(parser: argparse.ArgumentParser, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise ParserReached(parser)

    stopping = mock.patch.object(argparse.ArgumentParser, "parse_known_args", stop)
    # Scripts import their neighbours from the root, as `python -m` and pytest do.
    path = mock.patch.object(sys, "path", [str(ROOT), *sys.path])
    unchecked = mock.patch("aurora_rl.assembly.early.check_command_line")  # it would find no model and no data
    with stopping, unchecked, _levels_kept(), mock.patch.object(sys, "argv", [script, *words]), path:
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except ParserReached as reached:
            return reached.parser
    raise ValueError(f"{script} ran to its end without reading a command line")


@contextlib.contextmanager
def _levels_kept() -> Iterator[None]:
    """Restore the log levels after the block: benchmarks lower them when they start."""
    levels = [(logger, logger.level) for logger in map(logging.getLogger, ("aurora_rl", "transformers"))]
    try:
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)
