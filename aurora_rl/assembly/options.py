"""The vocabulary of all command lines and YAML files: one name for one thing, and the new names of former options.

Every parser of a command or script is an `OptionParser`, also that of dataclasses (`assembly.parser`). This module
imports nothing slow.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any

#: Former names of options and keys, with their new names; of several names, a parser knows those that fit.
RENAMED = {
    "dataset": ("data_root",),
    "json": ("output",),
    "out": ("output", "output_dir"),
    "pipeline": ("stages",),
    "splits": ("split",),
}

#: Placeholders of options' values in `--help`, if the option's name in capitals would say less.
VALUES = {"config": "FILE", "data_root": "DIR", "output": "FILE", "output_dir": "DIR"}


def new_names(name: str, known: Collection[str]) -> list[str]:
    """Return the new names of a former option or key; an empty list if the name is known or never was one.

    Args:
        name: the name, with underscores.
        known: names that the parser knows.
    """
    return [] if name in known else [now for now in RENAMED.get(name, ()) if now in known]


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of descriptions, and shows defaults except None and empty ones."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_empty = action.nargs == 0 or action.default in (None, "", [], {})
        return action.help if is_empty else super()._get_help_string(action)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return VALUES.get(action.dest) or super()._get_default_metavar_for_optional(action)


class OptionParser(argparse.ArgumentParser):
    """Shows options with underscores, also accepts hyphens, and refuses abbreviations and former names."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpFormatter, "allow_abbrev": False, **options})

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as `argparse` does; every way of parsing calls this method."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        return super().parse_known_args([*map(self._own_spelling, words[:end]), *words[end:]], namespace)

    def _own_spelling(self, word: str) -> str:
        option, equals, value = word.partition("=")
        if not option.startswith("--") or option in self._option_string_actions:
            return word
        name = option.removeprefix("--").replace("-", "_")
        if new := new_names(name, self.names):
            self.error(f"{option} has another name now: {' or '.join(f'--{now}' for now in new)}")
        return f"--{name}{equals}{value}" if name in self.names else word

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """End the program as a wrong option does if the block finds unusable files: a message, and no traceback."""
        try:
            yield
        except (OSError, ValueError) as error:
            self.error(str(error))

    @property
    def names(self) -> set[str]:
        """Names of the options, without the hyphens in front."""
        return {option.removeprefix("--") for option in self._option_string_actions}
