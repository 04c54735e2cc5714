"""The data sets of a run: one, or several by `data`, each with options of its own.

    data:
      - {benchmark: ref_avs, data_root: data/ref_avs, share: 0.7}
      - {benchmark: questions, data_root: data/qa, share: 0.3, task: aurora_rl.tasks.multiple_choice:MultipleChoice}

An entry may hold every option of `DataArguments` and the keys of `ENTRY_KEYS`; what it leaves out has the value of the
recipe's own key.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.data.mixing import MixedSet
from aurora_rl.data.sample import AVSample
from aurora_rl.files.existing import did_you_mean
from aurora_rl.tasks.base import load_task

#: Keys of an entry beside the options of `DataArguments`.
ENTRY_KEYS = ("name", "share", "target", "rewards", "split", "preset")
#: Options that belong to a task's words: an entry with another task has its own, not the recipe's.
OF_A_TASK = ("instruction", "chains", "reflections")
NAME = re.compile(r"\w[\w.-]*")


@dataclasses.dataclass(frozen=True)
class DataSet:
    """One data set of a run.

    Attributes:
        name: its name in scores and curves; empty in a run on one data set.
        args: its options.
        share: share of the rows that are trained on, see `data.mixing.MixedSet`.
        target: target of supervised fine-tuning on its rows; None for the run's, or the task's usual one.
        rewards: names of the reward functions that are asked about its rows; None for all.
        split: splits that an evaluation scores; empty for the run's.
        preset: preset of an evaluation; None for the run's.
        has_own_task: whether the entry names another task than the recipe.
    """

    name: str
    args: DataArguments
    share: float | None = None
    target: str | None = None
    rewards: tuple[str, ...] | None = None
    split: tuple[str, ...] = ()
    preset: str | None = None
    has_own_task: bool = False


def data_sets(args: DataArguments) -> list[DataSet]:
    """Return the data sets of a run; one without a name if the recipe has no `data`.

    Raises:
        ValueError: if no data set is named, an entry holds an unknown key or value, or two have one name.
    """
    if args.data is None:
        if not args.data_root:
            raise ValueError("there is no data_root: name the folder of the data set, or several data sets by `data`")
        return [DataSet("", args)]
    sets = [_data_set(entry, args) for entry in read_entries(args.data, name="data")]
    names = [each.name for each in sets]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"data: two data sets are called {twice[0]!r}: give each a `name` of its own")
    if missing := [each.name for each in sets if not each.args.data_root]:
        raise ValueError(f"data: {missing[0]!r} has no data_root: name its folder")
    return sets


def read_entries(value: Any, *, name: str) -> list[dict[str, Any]]:
    """Check the entries of `data`, without reading anything.

    Args:
        value: the value of the key.
        name: name of the key, for errors.

    Raises:
        ValueError: if it is no list of mappings, or one holds an unknown key or an invalid value.
    """
    if not isinstance(value, list | tuple) or not value or not all(isinstance(entry, Mapping) for entry in value):
        raise ValueError(f"{name} is {value!r}: expected a list of data sets, such as [{{benchmark: ref_avs, ...}}]")
    known = [field.name for field in dataclasses.fields(DataArguments) if field.name != "data"]
    for number, entry in enumerate(value):
        place = f"{name}[{number}]"
        for key in entry:
            if key not in (*known, *ENTRY_KEYS):
                raise ValueError(f"{place} has the unknown key {key!r}{did_you_mean(str(key), [*known, *ENTRY_KEYS])}")
        share = entry.get("share")
        is_number = isinstance(share, int | float) and not isinstance(share, bool)
        if share is not None and not (is_number and 0 < share < float("inf")):
            raise ValueError(f"{place}: share is {share!r}: expected a positive number, such as 0.7")
        if not NAME.fullmatch(entry_name(entry)):
            raise ValueError(
                f"{place}: name is {entry_name(entry)!r}: expected letters, digits, '_', '-' and '.', since a folder "
                "of results has this name"
            )
    shares = [entry.get("share") is None for entry in value]
    if any(shares) and not all(shares):
        raise ValueError(f"{name}[{shares.index(True)}] has no share, others have one: give each a share, or none")
    return [dict(entry) for entry in value]


def entry_name(entry: Mapping[str, Any]) -> str:
    """Return the name of an entry: its own, or the benchmark's; of a loader in a file that of the file."""
    if entry.get("name") is not None:
        return str(entry["name"])
    place, colon, _ = str(entry.get("benchmark", DataArguments.benchmark)).rpartition(":")
    if not colon:
        return str(entry.get("benchmark", DataArguments.benchmark))
    return PurePath(place).stem if place.endswith(".py") else place.rpartition(".")[2]


def entry_options(entry: Mapping[str, Any], inherited: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry's options of `DataArguments` with those that it inherits.

    Args:
        entry: the entry.
        inherited: the recipe's own options by name.
    """
    names = {field.name for field in dataclasses.fields(DataArguments)}
    usual_task = inherited.get("task") or DataArguments.task
    has_own_task = (entry.get("task") or usual_task) != usual_task
    passed = {k: v for k, v in inherited.items() if k in names and not (has_own_task and k in OF_A_TASK)}
    return {**passed, **{k: v for k, v in entry.items() if k in names}, "data": None}


def _data_set(entry: Mapping[str, Any], args: DataArguments) -> DataSet:
    inherited = {field.name: getattr(args, field.name) for field in dataclasses.fields(args)}
    options = entry_options(entry, inherited)
    return DataSet(
        name=entry_name({"benchmark": args.benchmark} | dict(entry)),
        args=DataArguments(**options),
        share=entry.get("share"),
        target=entry.get("target"),
        rewards=None if entry.get("rewards") is None else tuple(_as_list(entry["rewards"])),
        split=tuple(_as_list(entry.get("split"))),
        preset=entry.get("preset"),
        has_own_task=options.get("task", args.task) != args.task,
    )


def _as_list(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def main_set(sets: Sequence[DataSet]) -> DataSet:
    """Return the set whose task has the run's head, or the first one where no task has a head.

    Raises:
        ValueError: if tasks need different heads, or different tokens of one.
    """
    heads = {each.name: (load_task(each.args.task).head, load_task(each.args.task).answer_token) for each in sets}
    needed = {name: head for name, head in heads.items() if head[0] is not None}
    if len(set(needed.values())) > 1:
        first, second = list(needed)[0], next(name for name in needed if needed[name] != list(needed.values())[0])
        raise ValueError(
            f"data: the task of {first!r} needs the head {needed[first][0]!r}, that of {second!r} "
            f"{needed[second][0]!r}: a run trains one head, train on them one after the other"
        )
    return next((each for each in sets if each.name in needed), sets[0])


def only_set(args: DataArguments) -> DataArguments:
    """Return the arguments of a run on one data set, for what reads no more than one.

    Raises:
        ValueError: if `data` is set, or no data set is named.
    """
    [only, *others] = data_sets(args)
    if args.data is not None:
        names = " or ".join(repr(each.name) for each in (only, *others))
        raise ValueError(f"data: one data set is read here: give `benchmark` and `data_root` of {names} instead")
    return only.args


def reward_sets(sets: Sequence[DataSet], specs: Sequence[str]) -> list[dict[str, bool]]:
    """Return of each reward function whether it is for a set, by the set's name; without those that name no rewards.

    Args:
        sets: the sets, whose `rewards` name functions as the recipe does or by the name after the colon.
        specs: the recipe's `reward_funcs`.

    Raises:
        ValueError: if a set names a function that the recipe does not, or none at all.
    """
    names = [spec.rpartition(":")[2] for spec in specs]
    for each in sets:
        unknown = [name for name in each.rewards or () if name not in (*specs, *names)]
        if unknown:
            raise ValueError(
                f"data: {each.name!r} names the reward {unknown[0]!r}, which reward_funcs does not: choose from "
                f"{', '.join(names)}{did_you_mean(unknown[0], names)}"
            )
        if each.rewards == ():
            raise ValueError(f"data: {each.name!r} has no rewards, so that nothing is learned from it: name some")
    return [
        {each.name: not {spec, name}.isdisjoint(each.rewards) for each in sets if each.rewards is not None}
        for spec, name in zip(specs, names, strict=True)
    ]


def mixed_sets(sets: Sequence[DataSet], samples: Sequence[AVSample]) -> list[MixedSet]:
    """Return how the rows of a run's sets are mixed; none in a run on one data set.

    Args:
        sets: the sets.
        samples: the rows that are trained on, set after set.
    """
    of_sets = {each.name: [sample for sample in samples if sample.dataset == each.name] for each in sets if each.name}
    return [
        MixedSet(each.name, len(rows), each.share, has_frames=rows[0].num_frames > 0)
        for each, rows in zip(sets, of_sets.values(), strict=False)
    ]
