"""Scores of a benchmark's rows, and the two files they are kept in, whatever system predicted the masks.

out.json     the numbers of each split, both kinds of Mix, tables and intervals (`score_tables`)
out.jsonl    one line a row (`RowScore`), from which two systems are compared

{"uid": "abc_cat_1", "row": 17, "split": "test_s", ..., "text": "The cat.", "preset": "refavs", "J": 0.81, ...}

Every row of metadata.csv counts, exact duplicates included, as in the official Ref-AVS script. Sums are rounded once
(`math.fsum`), so that neither the order of the rows nor the number of processes changes a digit.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.data.reference_types import reference_type_of
from aurora_rl.data.sample import NULL_CATEGORY, AVSample
from aurora_rl.evaluation.intervals import bootstrap_mean_of_means
from aurora_rl.evaluation.records import MaskScore, SampleResult
from aurora_rl.files.atomic import whole_files
from aurora_rl.files.plain import RecordError, read_records
from aurora_rl.tasks.completions import normalise_category

#: The seen and the unseen split, which Mix is of.
MIX_SPLITS = ("test_s", "test_u")


@dataclasses.dataclass(frozen=True)
class RowScore:
    """One row of the benchmark with the scores of its masks.

    Attributes:
        uid: as in `AVSample`; not unique across a file.
        row: as in `AVSample`; `uid` and `row` together are unique.
        split: as in `AVSample`.
        media_id: the clip, shared by all rows that ask about it.
        category: the true category, `"null"` where the reference points at nothing.
        reference_type: kind of reference, as the benchmark or its chains tell it, or from the sentence.
        type_is_derived: whether it is from the sentence (`reference_type_of`).
        text: the referring sentence.
        preset: name of the evaluation preset.
        J: region similarity, mean over frames.
        F: as the preset defines it.
        S: sqrt(predicted pixels / all pixels) of the clip.
        S_per_frame: mean over frames of each frame's S.
        missing: whether there was no prediction, so that an empty mask was scored.
        completion: what the model said, where a model was asked.
        novelty: "seen" or "new": whether the training split has the category; None for a null reference, and where the
            training split's categories are not known (`mark_novelty`).
    """

    uid: str
    row: int
    split: str
    media_id: str
    category: str
    reference_type: str
    type_is_derived: bool
    text: str
    preset: str
    J: float
    F: float
    S: float
    S_per_frame: float
    missing: bool
    completion: str | None = None
    novelty: str | None = None

    @classmethod
    def of_sample(cls, sample: AVSample, score: MaskScore, *, preset: str) -> RowScore:
        """A row's scores under a preset."""
        return cls(**_facts(sample), preset=preset, **_numbers(score))

    @classmethod
    def of_result(cls, result: SampleResult) -> RowScore:
        """The scores of a model's greedy completion."""
        numbers = _numbers(result.greedy.clip)
        return cls(**_facts(result), preset=result.preset, completion=result.greedy.text, **numbers)

    @property
    def key(self) -> str:
        """`uid` and `row`, as `AVSample.key`."""
        return f"{self.uid}#{self.row}"

    @property
    def is_null(self) -> bool:
        """Whether the reference points at nothing."""
        return self.category == NULL_CATEGORY


def _facts(row: AVSample | SampleResult) -> dict[str, Any]:
    reference_type, type_is_derived = reference_type_of(row.reference, row.category, row.reference_type)
    return {
        "uid": row.uid,
        "row": row.row,
        "split": row.split,
        "media_id": row.media_id,
        "category": row.category,
        "reference_type": reference_type,
        "type_is_derived": type_is_derived,
        "text": row.reference,
    }


def _numbers(score: MaskScore) -> dict[str, Any]:
    return {
        "J": score.J,
        "F": score.F,
        "S": score.S,
        "S_per_frame": score.S_frames,
        "missing": score.is_missing,
    }


Measure = Callable[[RowScore], float]

#: Of rows that refer to something.
TARGET_MEASURES: dict[str, Measure] = {
    "J": lambda row: row.J,
    "F": lambda row: row.F,
    "J&F": lambda row: (row.J + row.F) / 2,
}
#: Of rows that refer to nothing; right is a mask without a single pixel.
NULL_MEASURES: dict[str, Measure] = {
    "S": lambda row: row.S,
    "S_per_frame": lambda row: row.S_per_frame,
    "null_accuracy": lambda row: float(row.S == 0.0),
    "false_alarm_rate": lambda row: float(row.S > 0.0),
}
LOWER_IS_BETTER = ("S", "S_per_frame", "false_alarm_rate")

Table = dict[str, float | int]

Intervals = dict[str, dict[str, float]]  # of each number its mean, low and high


def mark_novelty(rows: Iterable[RowScore], train_categories: Iterable[str]) -> list[RowScore]:
    """The rows with `novelty`, which the categories of the training split tell; none of them leaves it None."""
    trained = set(map(normalise_category, train_categories))
    if not trained:
        return list(rows)
    return [dataclasses.replace(row, novelty=_novelty(row, trained)) for row in rows]


def _novelty(row: RowScore, trained: set[str]) -> str | None:
    if row.is_null:
        return None
    return "seen" if normalise_category(row.category) in trained else "new"


def novelty_group(row: RowScore) -> str | None:
    """Such as "test_u, new categories"; None outside the unseen split, and where `novelty` is not known."""
    is_known = row.split == MIX_SPLITS[1] and row.novelty
    return f"{row.split}, {row.novelty} categories" if is_known else None


def score_tables(rows: Sequence[RowScore]) -> dict[str, Any]:
    """What out.json holds.

    Args:
        rows: rows scored under one preset, from `mark_novelty` where the unseen split is to be told apart.

    Returns:
        `preset`; `splits`: each split's table (J, F, J&F, n, missing; of null references S, S_per_frame, null_accuracy,
        false_alarm_rate, n, missing; a split with both has both, the number of null references being `n_null`); `mix`
        over the seen and the unseen split by both definitions, None where one is absent; `tables`: the same numbers
        `by_category`, `by_reference_type` and `by_novelty`; `intervals`: 95 % bootstrap interval over clips of each
        number of `splits`, of `mix` and of each table, but of groups of a single clip; `derived_types`: rows whose
        reference type is from the sentence; `duplicates`: rows that repeat an earlier row's uid and sentence, and count
        like any.

    Raises:
        ValueError: if there are no rows, or they were scored under several presets.
    """
    preset = only_preset(rows)
    groupings = {
        "splits": _group(rows, lambda row: row.split),
        "by_category": _group(rows, lambda row: row.category),
        "by_reference_type": _group(rows, lambda row: row.reference_type),
        "by_novelty": _group(rows, novelty_group),
    }
    tables = {name: {group: table(of) for group, of in groups.items()} for name, groups in groupings.items()}
    intervals = {name: {group: _intervals(of) for group, of in groups.items()} for name, groups in groupings.items()}
    mix = _mix(*(groupings["splits"].get(split, []) for split in MIX_SPLITS))
    return {
        "preset": preset,
        "splits": tables.pop("splits"),
        "mix": {definition: of and {name: of[name]["mean"] for name in of} for definition, of in mix.items()},
        "intervals": {"splits": intervals.pop("splits"), "mix": mix, **intervals},
        "tables": tables,
        "derived_types": sum(row.type_is_derived for row in rows),
        "duplicates": len(rows) - len({(row.split, row.uid, row.text) for row in rows}),
    }


def table(rows: Sequence[RowScore]) -> Table:
    """The numbers of some rows; see `score_tables`."""
    targets, nulls = split_nulls(rows)
    numbers: Table = {}
    if targets:
        numbers |= _means(targets, TARGET_MEASURES) | {"n": len(targets)}
    if nulls:
        numbers |= _means(nulls, NULL_MEASURES) | {"n_null" if targets else "n": len(nulls)}
    return numbers | {"missing": sum(row.missing for row in rows)}


def split_nulls(rows: Iterable[RowScore]) -> tuple[list[RowScore], list[RowScore]]:
    """The rows that refer to something, and those that refer to nothing."""
    rows = list(rows)
    return [row for row in rows if not row.is_null], [row for row in rows if row.is_null]


def only_preset(rows: Iterable[RowScore]) -> str:
    """The preset of all rows.

    Raises:
        ValueError: if there are several, or no rows.
    """
    presets = sorted({row.preset for row in rows})
    if len(presets) != 1:
        raise ValueError(f"the rows were scored under the presets {presets}: give rows of exactly one")
    return presets[0]


def _means(rows: Sequence[RowScore], measures: Mapping[str, Measure]) -> Table:
    return {name: math.fsum(map(measure, rows)) / len(rows) for name, measure in measures.items()}


def _mix(seen: Sequence[RowScore], unseen: Sequence[RowScore]) -> dict[str, Intervals | None]:
    """Both meanings that papers give to "Mix", with intervals; None where one of the two splits is absent."""
    seen, unseen = split_nulls(seen)[0], split_nulls(unseen)[0]
    if not seen or not unseen:
        return {"mean_of_splits": None, "row_weighted": None}
    definitions = {"mean_of_splits": [seen, unseen], "row_weighted": [[*seen, *unseen]]}
    return {
        definition: {name: _interval(groups, measure) for name, measure in TARGET_MEASURES.items()}
        for definition, groups in definitions.items()
    }


def _intervals(rows: Sequence[RowScore]) -> Intervals:
    """The interval of each number; none of rows about a single clip, which tell nothing of other clips."""
    intervals: Intervals = {}
    for group, measures in zip(split_nulls(rows), (TARGET_MEASURES, NULL_MEASURES), strict=True):
        if len({row.media_id for row in group}) > 1:
            intervals |= {name: _interval([group], measure) for name, measure in measures.items()}
    return intervals


def _interval(groups: Iterable[Sequence[RowScore]], measure: Measure) -> dict[str, float]:
    """The mean of the groups' means with its interval."""
    drawn = [([measure(row) for row in rows], [row.media_id for row in rows]) for rows in groups]
    return dataclasses.asdict(bootstrap_mean_of_means(drawn))


def _group(rows: Iterable[RowScore], key: Callable[[RowScore], str | None]) -> dict[str, list[RowScore]]:
    """The groups by name, those of null references alone last; rows whose key is None are in none."""
    groups: defaultdict[str, list[RowScore]] = defaultdict(list)
    for row in rows:
        if (name := key(row)) is not None:
            groups[name].append(row)
    return {name: groups[name] for name in sorted(groups, key=lambda name: (not split_nulls(groups[name])[0], name))}


# ------------------------------------------------------------------------------------------------ files


def rows_file(output: Path) -> Path:
    """The JSON-lines file of the rows that belongs to an out.json."""
    return output.with_suffix(".jsonl")


def write_scores(output: Path, rows: Iterable[RowScore], tables: Mapping[str, Any]) -> None:
    """Write out.jsonl and out.json, both whole or not at all.

    Args:
        output: the path of out.json.
        rows: the scores; written in the order of the benchmark's table.
        tables: from `score_tables`, with whatever else out.json is to say.
    """
    lines = [json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n" for row in sorted(rows, key=_place)]
    with whole_files(rows_file(output), output) as (rows_out, tables_out):
        rows_out.write("".join(lines).encode())
        tables_out.write(f"{json.dumps(tables, indent=2, ensure_ascii=False)}\n".encode())


def read_scores(output: Path) -> list[RowScore]:
    """The rows of an out.json, from the out.jsonl beside it.

    Raises:
        ValueError: if there is none, a line is no such row, or a row is there twice.
    """
    path = rows_file(output)
    if not path.exists():
        raise ValueError(f"there is no {path}: give the out.json of `aurora-rl evaluate`, with its rows beside it")
    rows: dict[str, RowScore] = {}
    try:
        for place, record in read_records(path):
            try:
                row = _parse_row(record)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{place} is no row of scores ({error}): evaluate again") from error
            if row.key in rows:
                raise ValueError(f"{place} holds row {row.key!r} a second time: evaluate again")
            rows[row.key] = row
    except RecordError as error:
        raise ValueError(f"{error.place} is no row of scores ({error.reason}): evaluate again") from error
    return list(rows.values())


def _parse_row(record: Any) -> RowScore:
    row = RowScore(**record)
    if not all(isinstance(value, int | float) for value in (row.row, row.J, row.F, row.S, row.S_per_frame)):
        raise ValueError("J, F, S, S_per_frame and row must be numbers")
    return row


def _place(row: RowScore) -> tuple[int, str]:
    return row.row, row.uid
