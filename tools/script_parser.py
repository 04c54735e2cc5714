"""The parser of a script, taken when the script is about to read its command line.

The documentation's list of keys is made of it, and the tests check the documentation's commands by it: both see what a
user's command meets, whichever way the script builds its parser.
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
    """Stops a script at its parser; no `except Exception` of the script may hold it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


@functools.cache
def script_parser(script: str) -> argparse.ArgumentParser:
    """Run a script up to its command line: a `TrlParser` where its arguments are dataclasses.

    Args:
        script: path relative to the repository's root, such as `recipes/sft.py`.

    Raises:
        ValueError: if it reads no command line.
    """
    with _stopped_at_parser(), _levels_kept(), mock.patch.object(sys, "argv", [script]), _importable(ROOT):
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except ParserReached as reached:
            return reached.parser
    raise ValueError(f"{script} ran to its end without reading a command line")


@contextlib.contextmanager
def _stopped_at_parser() -> Iterator[None]:
    def stop(parser: argparse.ArgumentParser, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise ParserReached(parser)

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", stop),
        mock.patch("aurora_rl.assembly.early.check_command_line"),  # it would find no model and no data
    ):
        yield


@contextlib.contextmanager
def _levels_kept() -> Iterator[None]:
    """Benchmarks make themselves quiet at once; whoever asks for their parsers goes on to hear warnings."""
    levels = [(logger, logger.level) for logger in map(logging.getLogger, ("aurora_rl", "transformers"))]
    try:
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


@contextlib.contextmanager
def _importable(root: Path) -> Iterator[None]:
    """Scripts import their neighbours from the root, as `python -m` and pytest see it."""
    with mock.patch.object(sys, "path", [str(root), *sys.path]):
        yield
