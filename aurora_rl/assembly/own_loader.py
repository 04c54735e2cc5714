"""Loaders that a recipe names: `benchmark: package.module:load` or `benchmark: path/to/mine.py:load`.

A loader is a function `load(root, split, ...) -> list[AVSample]`. It is called with `data_root` and the split, and by
name with those options of `DataArguments` that its signature names; `**options` takes all of them. What it returns is
checked here, so that a mistake is told by the loader's name and not by a trainer.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from aurora_rl.data.files import DatasetError
from aurora_rl.data.sample import AVSample
from aurora_rl.named.objects import load_object

#: Options of a run that say nothing about how a data set is read.
NOT_HANDED_ON = ("data_root", "benchmark", "data")


def is_own_loader(benchmark: str) -> bool:
    """Tell whether `benchmark` names a loader of one's own instead of a benchmark."""
    return ":" in benchmark


def load_by_name(benchmark: str, root: str, split: str, options: Mapping[str, Any]) -> list[AVSample]:
    """Load the samples of a split by a loader that a recipe names.

    Args:
        benchmark: the loader, `"package.module:load"` or `"path/to/mine.py:load"`.
        root: `data_root`, which is handed on unchanged.
        split: name of the split.
        options: further options by name; the loader gets those that its signature names.

    Raises:
        NamedObjectError: if there is no such object.
        DatasetError: if it is no function, asks for an unknown option, or returns anything but samples.
    """
    load = load_object(benchmark, what="loader")
    if inspect.isclass(load) or not callable(load):
        raise DatasetError(f"the loader {benchmark} is a {type(load).__name__}: expected a function load(root, split)")
    known = {name: value for name, value in options.items() if name not in NOT_HANDED_ON}
    found = load(root, split, **_options_for(load, known, benchmark))
    return check_samples(found, loader=benchmark, split=split)


def takes_option(benchmark: str, name: str) -> bool:
    """Tell whether a loader's signature names an option, or takes any."""
    return name in _options_for(load_object(benchmark, what="loader"), {name: None}, None)


def _options_for(load: Callable[..., Any], known: Mapping[str, Any], benchmark: str | None) -> dict[str, Any]:
    """Choose the options that a loader's signature names; without `benchmark` unknown ones are no error."""
    parameters = list(inspect.signature(load).parameters.values())
    by_name = [each for each in parameters[2:] if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    unknown = [each.name for each in by_name if each.default is each.empty and each.name not in known]
    if unknown and benchmark is not None:
        raise DatasetError(
            f"the loader {benchmark} asks for {unknown[0]!r}, which is no option of a data set: give it a default, or "
            f"choose from {', '.join(known)}"
        )
    if any(each.kind == each.VAR_KEYWORD for each in parameters):
        return dict(known)
    return {each.name: known[each.name] for each in by_name if each.name in known}


def check_samples(found: Any, *, loader: str, split: str) -> list[AVSample]:
    """Check what a loader returned for a split.

    Raises:
        DatasetError: naming the loader, the row and the field, if it is anything but samples of different keys.
    """
    if not isinstance(found, list | tuple):
        raise DatasetError(
            f"the loader {loader} returned a {type(found).__name__} for the split {split!r}: expected a list of "
            "aurora_rl.data.sample.AVSample"
        )
    if not found:
        raise DatasetError(f"the loader {loader} returned no rows for the split {split!r}: give a split that it has")
    first: dict[str, int] = {}
    for index, sample in enumerate(found):
        place = f"the loader {loader} returned row {index} of the split {split!r}"
        if not isinstance(sample, AVSample):
            raise DatasetError(f"{place} as a {type(sample).__name__}: expected aurora_rl.data.sample.AVSample")
        if problem := _problem_of(sample):
            raise DatasetError(f"{place} ({sample.uid!r}) {problem}")
        if first.setdefault(sample.key, index) != index:
            raise DatasetError(
                f"{place} with the uid and row of row {first[sample.key]}, {sample.key!r}: results are keyed by them, "
                "number the rows by `row`"
            )
    return list(found)


def _problem_of(sample: AVSample) -> str | None:
    for name, hint in typing.get_type_hints(AVSample).items():
        if name in _FIELDS and not _fits(value := getattr(sample, name), hint):
            return f"with {name} {value!r}: expected {_FIELDS[name]}"
    if not 0 < sample.fps < math.inf:
        return f"with fps {sample.fps!r}: expected a positive number of frames a second"
    if len(sample.mask_paths) not in (0, sample.num_frames) and sample.num_frames:
        return (
            f"with {len(sample.mask_paths)} masks for {sample.num_frames} frames: give a mask a frame, '' for a "
            "frame that is not annotated, or none at all"
        )
    return None


_FIELDS = {field.name: str(field.type).replace(" | ", " or ") for field in dataclasses.fields(AVSample)}


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a value is of the type that a field declares."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in inside)
    if origin is tuple:
        return isinstance(value, tuple) and (inside[-1:] != (...,) or all(_fits(each, inside[0]) for each in value))
    if origin is not None:
        return isinstance(value, origin)
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)
