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
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.bootstrap import bootstrap_interval
from aurora_rl.completions import normalise_category
from aurora_rl.data.sample import AVSample
from aurora_rl.predictions import MaskScore, SampleResult
from aurora_rl.prompts import NULL_CATEGORY

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
        reference_type: kind of reference, where the benchmark tells.
        text: the referring sentence.
        preset: name of the evaluation preset.
        J: region similarity, mean over frames.
        F: as the preset defines it.
        S: sqrt(predicted pixels / all pixels) of the clip.
        S_per_frame: mean over frames of each frame's S.
        missing: whether there was no prediction, so that an empty mask was scored.
        completion: what the model said, where a model was asked.
    """

    uid: str
    row: int
    split: str
    media_id: str
    category: str
    reference_type: str | None
    text: str
    preset: str
    J: float
    F: float
    S: float
    S_per_frame: float
    missing: bool
    completion: str | None = None

    @classmethod
    def of_sample(cls, sample: AVSample, score: MaskScore, *, preset: str) -> RowScore:
        """A row's scores under a preset."""
        return cls(
            uid=sample.uid,
            row=sample.row,
            split=sample.split,
            media_id=sample.media_id,
            category=sample.category,
            reference_type=sample.reference_type,
            text=sample.reference,
            preset=preset,
            **_numbers(score),
        )

    @classmethod
    def of_result(cls, result: SampleResult) -> RowScore:
        """The scores of a model's greedy completion."""
        return cls(
            uid=result.uid,
            row=result.row,
            split=result.split,
            media_id=result.media_id,
            category=result.category,
            reference_type=result.reference_type,
            text=result.reference,
            preset=result.preset,
            completion=result.greedy.text,
            **_numbers(result.greedy.clip),
        )

    @property
    def key(self) -> str:
        """`uid` and `row`, as `AVSample.key`."""
        return f"{self.uid}#{self.row}"

    @property
    def is_null(self) -> bool:
        """Whether the reference points at nothing."""
        return self.category == NULL_CATEGORY


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


def score_tables(rows: Sequence[RowScore], *, train_categories: Iterable[str] = ()) -> dict[str, Any]:
    """What out.json holds.

    Args:
        rows: rows scored under one preset.
        train_categories: categories of the training split, which tell the new from the seen ones in the unseen split;
            none leaves that table empty.

    Returns:
        `preset`; `splits`: each split's table (J, F, J&F, n, missing; of null references S, S_per_frame, null_accuracy,
        false_alarm_rate, n, missing; a split with both has both, the number of null references being `n_null`); `mix`
        over the seen and the unseen split by both definitions, None where one is absent; `intervals`: 95 % bootstrap
        interval over clips of each number of each split; `tables`: the same numbers `by_category`, `by_reference_type`
        and `by_novelty`; `duplicates`: rows that repeat another row's clip, category and sentence, and count like any.

    Raises:
        ValueError: if there are no rows, or they were scored under several presets.
    """
    preset = only_preset(rows)
    by_split = _group(rows, lambda row: row.split)
    seen, unseen = (by_split.get(split, []) for split in MIX_SPLITS)
    trained = set(map(normalise_category, train_categories))
    return {
        "preset": preset,
        "splits": {split: table(group) for split, group in by_split.items()},
        "mix": _mix(seen, unseen),
        "intervals": {split: _intervals(group) for split, group in by_split.items()},
        "tables": {
            "by_category": _tables(rows, lambda row: row.category),
            "by_reference_type": _tables(rows, lambda row: row.reference_type or "unknown"),
            "by_novelty": _tables(unseen, lambda row: _novelty(row, trained)) if trained else {},
        },
        "duplicates": len(rows) - len({(row.split, row.media_id, row.category, row.text) for row in rows}),
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


def _mix(seen: Sequence[RowScore], unseen: Sequence[RowScore]) -> dict[str, Table | None]:
    """Both meanings that papers give to "Mix"; None where one of the two splits is absent."""
    seen, unseen = split_nulls(seen)[0], split_nulls(unseen)[0]
    if not seen or not unseen:
        return {"mean_of_splits": None, "row_weighted": None}
    tables = [_means(rows, TARGET_MEASURES) for rows in (seen, unseen)]
    mean_of_splits: Table = {name: (tables[0][name] + tables[1][name]) / 2 for name in TARGET_MEASURES}
    return {"mean_of_splits": mean_of_splits, "row_weighted": _means([*seen, *unseen], TARGET_MEASURES)}


def _intervals(rows: Sequence[RowScore]) -> dict[str, dict[str, float]]:
    targets, nulls = split_nulls(rows)
    intervals = {}
    for group, measures in ((targets, TARGET_MEASURES), (nulls, NULL_MEASURES)):
        for name, measure in measures.items():
            if group:
                values, clips = [measure(row) for row in group], [row.media_id for row in group]
                intervals[name] = dataclasses.asdict(bootstrap_interval(values, clips=clips))
    return intervals


def _novelty(row: RowScore, trained: set[str]) -> str:
    return f"{row.split}, {'seen' if normalise_category(row.category) in trained else 'new'} categories"


def _tables(rows: Iterable[RowScore], key: Callable[[RowScore], str]) -> dict[str, Table]:
    return {name: table(group) for name, group in _group(rows, key).items()}


def _group(rows: Iterable[RowScore], key: Callable[[RowScore], str]) -> dict[str, list[RowScore]]:
    """The groups by name, those of null references alone last."""
    groups: defaultdict[str, list[RowScore]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return {name: groups[name] for name in sorted(groups, key=lambda name: (not split_nulls(groups[name])[0], name))}


# ------------------------------------------------------------------------------------------------ files


def rows_file(output: Path) -> Path:
    """The JSON-lines file of the rows that belongs to an out.json."""
    return output.with_suffix(".jsonl")


def write_scores(output: Path, rows: Iterable[RowScore], tables: Mapping[str, Any]) -> None:
    """Write out.jsonl, then out.json, each whole or not at all.

    Args:
        output: the path of out.json.
        rows: the scores; written in the order of the benchmark's table.
        tables: from `score_tables`, with whatever else out.json is to say.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n" for row in sorted(rows, key=_place)]
    _write_whole(rows_file(output), "".join(lines))
    _write_whole(output, json.dumps(tables, indent=2, ensure_ascii=False) + "\n")


def read_scores(output: Path) -> list[RowScore]:
    """The rows of an out.json, from the out.jsonl beside it.

    Raises:
        ValueError: if there is none, a line is no such row, or a row is there twice.
    """
    path = rows_file(output)
    if not path.is_file():
        raise ValueError(f"there is no {path}: give the out.json of `aurora-rl evaluate`, with its rows beside it")
    rows: dict[str, RowScore] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = _parse_row(json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}:{number} is no row of scores ({error}): evaluate again") from error
            if row.key in rows:
                raise ValueError(f"{path}:{number} holds row {row.key!r} a second time: evaluate again")
            rows[row.key] = row
    return list(rows.values())


def _parse_row(record: Any) -> RowScore:
    row = RowScore(**record)
    if not all(isinstance(value, int | float) for value in (row.row, row.J, row.F, row.S, row.S_per_frame)):
        raise ValueError("J, F, S, S_per_frame and row must be numbers")
    return row


def _place(row: RowScore) -> tuple[int, str]:
    return row.row, row.uid


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
