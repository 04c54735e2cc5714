"""Parsers of a recipe's YAML and command line; options of clips default to those that the checkpoint records."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import logging
import sys
import typing
from collections.abc import Iterable, Sequence
from typing import Any

import yaml
from trl import TrlParser

from aurora_rl.assembly.environment import set_environment
from aurora_rl.assembly.known_options import split_nulls
from aurora_rl.assembly.options import OptionParser, new_names
from aurora_rl.files.packaged import find_config
from aurora_rl.files.plain import read_text_file
from aurora_rl.models.clip_options import ClipOptions
from aurora_rl.models.loading import saved_clip_options
from aurora_rl.named.objects import NamedObjectError
from aurora_rl.tasks.base import load_task

logger = logging.getLogger(__name__)

#: Modules whose classes are not ours.
LIBRARIES = ("trl.", "transformers.", "builtins")
#: Pages that explain the fields which a class inherits from a library.
INHERITED = {
    "SFTConfig": "https://huggingface.co/docs/trl/sft_trainer#trl.SFTConfig",
    "GRPOConfig": "https://huggingface.co/docs/trl/grpo_trainer#trl.GRPOConfig",
}


class ConfigParser(OptionParser, TrlParser):
    """TRL's parser of dataclasses and a YAML file, in our vocabulary; `env` sets only allowed variables."""

    def __init__(self, dataclass_types: Iterable[Any], **options: Any) -> None:
        usage = "%(prog)s [--config FILE] [--OPTION VALUE ...]"
        super().__init__(tuple(dataclass_types), **{"usage": usage, **options})
        #: Whether an option's value may be None, by the option's name.
        self._may_be_none = {name: may for cls in self.dataclass_types for name, may in _optional_fields(cls).items()}
        self._nulls: set[str] = set()
        self.add_argument(
            "--config",
            default=argparse.SUPPRESS,
            help="YAML file whose keys are the options below; the command line wins over it",
        )
        # `--help` shows a group a dataclass: our fields first, then those that are inherited from a library.
        fields = {cls: own_fields(cls) for cls in self.dataclass_types}
        for cls, own in fields.items():
            self._move_to_group(cls.__name__, summary(cls), [field.name for field in own])
        for cls, own in fields.items():
            if base := inherited_from(cls):
                others = [field.name for field in dataclasses.fields(cls) if field not in own]
                self._move_to_group(f"{base} of TRL", f"Explained at {INHERITED[base]}", others)

    def parse_args_and_config(self, args: Iterable[str] | None = None, *options: Any, **more: Any) -> tuple[Any, ...]:
        """Parse as TRL does.

        Raises:
            ValueError: if `env` sets a variable that it may not; no variable is set then.
        """
        words = [
            part
            for word in (sys.argv[1:] if args is None else args)
            for part in (word.split("=", 1) if word.startswith("--config=") else [word])
        ]
        for index, flag in enumerate(words[:-1]):
            if flag == "--config":
                words[index + 1] = find_config(words[index + 1])
                self._check_config(words[index + 1])
        words, self._nulls = split_nulls(words, self._may_be_none)
        super().set_defaults_with_config(**{name: None for name in self._nulls if self._may_be_none[name]})
        return super().parse_args_and_config(words, *options, **more)

    def set_defaults_with_config(self, **content: Any) -> list[str]:
        """Set defaults as TRL does from a YAML file; null leaves an option unset whose value may not be None."""
        kept = {name: None if name in self._nulls else value for name, value in content.items()}
        kept = {name: value for name, value in kept.items() if value is not None or self._may_be_none.get(name, True)}
        return super().set_defaults_with_config(**kept)

    def _check_config(self, path: str) -> None:
        content = yaml.safe_load(read_text_file(path))
        if not isinstance(content, dict):
            return  # TRL refuses it
        for key in content:
            if new := new_names(str(key), self.names):
                self.error(f"{path}: the key {key!r} has another name now: {' or '.join(new)}")
        if "env" in content:
            set_environment(content["env"], config=path)

    def _move_to_group(self, title: str, description: str, names: Sequence[str]) -> None:
        group = self.add_argument_group(title, description)
        for action in [action for name in names for action in self._actions if action.dest == name]:
            self._optionals._group_actions.remove(action)
            group._group_actions.append(action)
            action.option_strings = [option for option in action.option_strings if "-" not in option.lstrip("-")]
            if action.option_strings == [f"--no_{action.dest}"]:
                action.help = f"set --{action.dest} to false"


def _optional_fields(cls: type) -> dict[str, bool]:
    """Return whether the value of each field may be None."""
    hints = typing.get_type_hints(cls)
    return {field.name: type(None) in typing.get_args(hints[field.name]) for field in dataclasses.fields(cls)}


def own_fields(cls: type) -> list[dataclasses.Field]:
    """Return the fields that a class declares, in order; a subclass of TRL's classes has those that it adds or sets."""
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    bases = [base for base in reversed(cls.__mro__) if not base.__module__.startswith(LIBRARIES)]
    declared = [name for base in bases for name in inspect.get_annotations(base)]
    return [fields[name] for name in dict.fromkeys(declared) if name in fields]


def summary(cls: type) -> str:
    """Return the first paragraph of a class's docstring, in one line."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].split())


def inherited_from(cls: type) -> str | None:
    """Return the name of TRL's class that gives the other fields, a key of `INHERITED`."""
    return next((base.__name__ for base in cls.__mro__ if base.__name__ in INHERITED), None)


class RecipeParser(ConfigParser):
    """Reads `ModelArguments` and `DataArguments` among others.

    A value that YAML or the command line sets wins over the checkpoint's, with a warning where the two differ. What
    neither sets and the checkpoint does not tell has the default of `DataArguments`.
    """

    def __init__(self, dataclass_types: Iterable[Any], **options: Any) -> None:
        super().__init__(dataclass_types, **options)
        actions = [action for action in self._actions if action.dest in ClipOptions().to_arguments()]
        self.usual_clips = {action.dest: action.default for action in actions}
        for action in actions:
            usual = "" if action.default is None else f", else {action.default!r}".replace("%", "%%")
            action.help = f"{action.help} (default: as the checkpoint was trained{usual})"
            action.default = argparse.SUPPRESS  # so that only what YAML or the command line sets is found

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as `argparse` does; every way of parsing calls this method."""
        found, rest = super().parse_known_args(args, namespace)
        options = saved_clip_options(found.model)
        try:
            saved = options.to_arguments(load_task(found.task).name) if options else {}
        except NamedObjectError as error:
            self.error(str(error))
        for name, value in (self.usual_clips | saved).items():
            own = vars(found).setdefault(name, value)
            if own != value and name in saved:
                logger.warning("%s was trained with %s %r, here it is %r", found.model, name, value, own)
        return found, rest
