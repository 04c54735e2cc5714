"""Reader of a script's command line and YAML file that imports no torch and none of the recipe's classes.

The names, types and choices of options are shipped in `known_options.json`, which `tools/known_options.py` writes and a
test compares with the parsers themselves. If the installed versions of transformers or TRL differ from those of the
file, names that the file does not know are left to the parser.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from aurora_rl.assembly.environment import check_environment
from aurora_rl.assembly.options import OptionParser, new_names
from aurora_rl.files.existing import check_file, did_you_mean
from aurora_rl.files.packaged import find_config, recipe_names
from aurora_rl.files.plain import read_text_file

FILE = Path(__file__).with_suffix(".json")
#: Libraries whose classes ours inherit options from.
LIBRARIES = ("transformers", "trl")
#: What `aurora-rl evaluate --predictions` reads beside its own options: those of the data.
SAVED_MASKS = "aurora-rl evaluate --predictions"
#: Scripts that read a recipe's config, of whose keys only their own count.
READ_ANY_KEY = ("data_prep/cache_features.py", "data_prep/to_hf_dataset.py", SAVED_MASKS)
NULL = "null"  # as a value on the command line, it unsets a key of the YAML file
TRUE, FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")  # as transformers reads them

Options = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Asked:
    """Values that a command line and its YAML file set.

    Attributes:
        script: path of the script, such as `recipes/sft.py`.
        values: values by name, without those that neither sets.
        config: path of the YAML file.
        from_config: names that only the file sets.
    """

    script: str
    values: Mapping[str, Any]
    config: str | None = None
    from_config: frozenset[str] = frozenset()

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value that is set; the default if there is none, or it is null."""
        value = self.values.get(name)
        return default if value is None else value

    def called(self, name: str) -> str:
        """Return the name of a value in errors: `--fps`, or `config.yaml: fps`."""
        return f"{self.config}: {name}" if name in self.from_config else f"--{name}"


def read_asked(script: str, words: Sequence[str]) -> Asked:
    """Read a command line and its YAML file.

    Args:
        script: path of the script, a key of `scripts` in the shipped file.
        words: words of the command line without the script.

    Raises:
        ValueError: if the script does not know an option or key, a value has the wrong type, an option is missing, or
            the config cannot be read.
    """
    options = options_of(script)
    config, rest = _split_config(words)
    rest, unset = split_nulls(rest, options)
    known = {**options_of(), **options} if script in READ_ANY_KEY else options
    content = {} if config is None else read_config(config, known)
    content = {name: value for name, value in content.items() if name in options and name not in unset}
    typed = _read_words(rest, options, given=content)
    return Asked(script, {**content, **typed}, config, frozenset(content) - frozenset(typed))


def options_of(*scripts: str) -> Options:
    """Return the options of some scripts together; those of all scripts if none is given."""
    table = _table()
    options: dict[str, Mapping[str, Any]] = {}
    for name in [name for script in scripts or table["scripts"] for name in table["scripts"][script]]:
        for option, described in table["classes"][name].items():
            options.setdefault(option, described)  # recipes come first
    return options


def names_of(registry: str) -> list[str]:
    """Return the names in a registry of classes that need torch: `segmenter` (types) or `ablations`."""
    return _table()["names"][registry]


def read_config(path: str | Path, options: Options) -> dict[str, Any]:
    """Read the keys of a YAML file with their values, without `env`.

    Args:
        path: the file.
        options: options whose names the file may have as keys.

    Raises:
        ValueError: if the file is missing or not a YAML mapping, or has a key or value that the options do not allow.
    """
    if not Path(path).exists() and not Path(path).suffix:
        hint = did_you_mean(str(path), recipe_names())
        raise ValueError(f"--config {path} is neither a file nor a packaged recipe: see `aurora-rl recipes list`{hint}")
    content = read_yaml(path, name="--config", example="recipes/synthetic/evaluate.yaml")
    unknown = [str(name) for name in content if name != "env" and name not in options]
    for name in unknown:
        if now := new_names(name, options):
            raise ValueError(f"{path}: {name} has another name now: {' or '.join(now)}")
    if unknown and _versions_are_known():
        hint = did_you_mean(unknown[0], options)
        raise ValueError(f"{path} has the unknown key {', '.join(map(repr, unknown))}{hint or ': remove it'}")
    if "env" in content:
        check_environment(content["env"], config=str(path))
    for name, value in content.items():
        if name in options:
            check_value(value, options[name], name=f"{path}: {name}")
    return {name: _typed(value, options.get(name)) for name, value in content.items() if name != "env"}


def read_yaml(path: str | Path, *, name: str, example: str) -> dict[str, Any]:
    """Read the keys of a YAML file.

    Args:
        path: the file.
        name: name of the option that gave the path, for the error.
        example: path of a file of this kind, for the error.

    Raises:
        ValueError: if the file is missing, not YAML, or not a mapping.
    """
    check_file(path, name=name)
    try:
        content = yaml.safe_load(read_text_file(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no keys: give a file such as {example}")
    return content


@functools.cache
def _table() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def _versions_are_known() -> bool:
    return all(importlib.metadata.version(name) == version for name, version in _table()["versions"].items())


def _split_config(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split the value of the first `--config` from all other words."""
    rest = [part for word in words for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if "--config" not in rest:
        return None, rest
    index = rest.index("--config")
    if len(rest) == index + 1:
        raise ValueError("--config names no file: give a YAML file after it")
    return find_config(rest[index + 1]), rest[:index] + rest[index + 2 :]


def split_nulls(words: Sequence[str], names: Collection[str]) -> tuple[list[str], set[str]]:
    """Split `--key null` from a command line: the option has the value that `key: null` gives it in a YAML file.

    Args:
        words: words of the command line.
        names: names of the options.

    Returns:
        The other words, and the names of the options that are null; of an option that is given twice, the last counts.
    """
    rest: list[str] = []
    nulls: set[str] = set()
    left = list(words)
    while left:
        word = left.pop(0)
        option, equals, value = word.partition("=")
        name = option.removeprefix("--").replace("-", "_") if option.startswith("--") else ""
        if name not in names:
            rest.append(word)
        elif value == NULL or (not equals and left[:1] == [NULL] and _is_last_value(left)):
            nulls.add(name)
            del left[: 0 if equals else 1]
        else:
            nulls.discard(name)
            rest.append(word)
    return rest, nulls


def _is_last_value(words: Sequence[str]) -> bool:
    return len(words) == 1 or words[1].startswith("--")


class _Parser(OptionParser):
    """A parser that raises a ValueError where argparse would print the usage and exit."""

    def error(self, message: str) -> NoReturn:
        are_missing = message.startswith("the following arguments are required")
        raise ValueError(f"{message}, as options or as keys of --config FILE" if are_missing else message)


def _read_words(words: Sequence[str], options: Options, *, given: Iterable[str]) -> dict[str, Any]:
    parser = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    for name, option in options.items():
        # One data set or several must be named.
        is_required = option.get("required") or (name == "data_root" and "data" in options and "data" not in given)
        _add(parser, name, option, is_required=bool(is_required) and name not in given)
    found, unknown = parser.parse_known_args(words)
    if unknown and _versions_are_known():
        name = unknown[0].partition("=")[0]
        known = (f"--{option}" for option in options)
        raise ValueError(f"unrecognized arguments: {' '.join(unknown)}{did_you_mean(name, known)}")
    return vars(found)


def _add(parser: argparse.ArgumentParser, name: str, option: Mapping[str, Any], *, is_required: bool) -> None:
    more: dict[str, Any] = {"const": True} if option.get("nargs") == "?" else {}
    parser.add_argument(
        *(f"--{spelled}" for spelled in (name, *option.get("aliases", ()))),
        dest=name,
        type=_converter(option),
        nargs=option.get("nargs"),
        choices=option.get("choices"),
        required=is_required,
        **more,
    )
    if option.get("can_be_negated"):
        parser.add_argument(f"--no_{name}", dest=name, action="store_false")


def _converter(option: Mapping[str, Any]) -> Callable[[str], Any]:
    """Return the function that converts a word; `none` becomes None if the option allows it and is no text."""
    may_be_none = option.get("may_be_none") and option["type"] != "str"

    def convert(text: str) -> Any:
        return None if may_be_none and text.lower() in ("none", "null") else KINDS[option["type"]](text)

    convert.__name__ = option["type"]  # argparse shows it
    return convert


def _boolean(text: str) -> bool:
    if text.lower() not in TRUE + FALSE:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in TRUE


def _number(text: str) -> float:
    number = float(text)
    if math.isnan(number):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return number


KINDS: dict[str, Callable[[str], Any]] = {"int": int, "float": _number, "bool": _boolean, "str": str}
EXPECTED = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}


def check_value(value: Any, option: Mapping[str, Any], *, name: str) -> None:
    """Refuse a YAML value of the wrong type for its option; null leaves the option unset.

    Args:
        value: the value.
        option: the option, as `options_of` describes it.
        name: name of the key, for the error.

    Raises:
        ValueError: if it has another type.
    """
    if value is None:
        return
    if option.get("nargs") != "+" or (option.get("may_be_text") and isinstance(value, str)):
        _check_scalar(value, option, name=name)
    elif not isinstance(value, list):
        raise ValueError(f"{name} is {value!r}: expected a list, such as [{value}]")
    else:
        for each in value:
            _check_scalar(each, option, name=name)


def _check_scalar(value: Any, option: Mapping[str, Any], *, name: str) -> None:
    kind, choices = option["type"], option.get("choices")
    if choices is not None:
        if value is False and "no" in choices:
            raise ValueError(f'{name} is false, which is what YAML makes of no: write "no" in quotes')
        if isinstance(value, str) and value not in choices:
            raise ValueError(f"{name} is {value!r}: choose from {', '.join(choices)}{did_you_mean(value, choices)}")
    elif kind != "str" and not _is_of_kind(value, option):
        raise ValueError(f"{name} is {value!r}: expected {EXPECTED[kind]}")


def _typed(value: Any, option: Mapping[str, Any] | None) -> Any:
    """Convert a number that a YAML file gives as a text, such as 1e-5, as argparse does."""
    if option is None or option["type"] == "str" or not isinstance(value, str):
        return value
    return _converter(option)(value)


def _is_of_kind(value: Any, option: Mapping[str, Any]) -> bool:
    if isinstance(value, str):  # argparse converts it
        try:
            _converter(option)(value)
        except (ValueError, argparse.ArgumentTypeError):
            return False
        return True
    if option["type"] == "bool":
        return value in (0, 1)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    return is_number and (option["type"] == "float" or float(value).is_integer())
