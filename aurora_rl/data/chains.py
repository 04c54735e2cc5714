"""Chains of thought: JSON-lines files keyed by uid and row, joined to the rows of a benchmark.

{"uid": "abc_cat_1", "row": 0, "category": "cat", "steps": {"look": ..., "listen": ..., "read": ...}, "answer": ...}

A record of reflective training also has a wrong chain, `"wrong": "Look: ..."`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aurora_rl.data.files import DatasetError, Row
from aurora_rl.data.sample import AVSample
from aurora_rl.files.plain import NotPlainFileError, RecordError, read_records

CHAIN_KEYS = {"uid": str, "row": int, "category": str, "steps": dict, "answer": str}  # the keys of every record


@dataclasses.dataclass(frozen=True)
class ChainFile:
    """A file of chains of thought, and a task's way to write them down.

    Attributes:
        path: file of JSON lines.
        render: function that makes the text of a chain from its steps and its answer; it raises a ValueError where a
            step is missing.
        answer_token: token of the answer, which a wrong chain must not hold.
    """

    path: Path
    render: Callable[[Mapping[str, str], str], str]
    answer_token: str


def add_chains(samples: Sequence[AVSample], chains: ChainFile | None, rows: Sequence[Row]) -> list[AVSample]:
    """Fill `chain`, `reference_type`, `seen` and `heard` of the samples that have a record in the file.

    Args:
        samples: the samples of one split.
        chains: the file; None leaves the samples unchanged.
        rows: all rows of the benchmark's table, those of other splits included: `rows[i].row` is i.

    Raises:
        DatasetError: if there is no such file, or a record fits no row.
    """
    if chains is None:
        return list(samples)
    fields: dict[int, dict[str, Any]] = {}
    for place, record in _records(chains.path):
        with _at(place):
            uid, row = record["uid"], record["row"]  # never the position: the authors' release mixed chains up so
            if not 0 <= row < len(rows) or rows[row].uid != uid:
                table = rows[0].origin.rpartition(":")[0]
                raise DatasetError(f"{table} has no uid {uid!r} at row {row!r}: rebuild the chains for this file")
            _check_fields_agree(record, str(rows[row]), category=rows[row].category, exp=rows[row].reference)
            if row in fields:
                raise DatasetError(f"{rows[row]} already has a chain: keep one record a row")
            fields[row] = _chain_fields(record, chains)
    return [dataclasses.replace(sample, **fields.get(sample.row, {})) for sample in samples]


def add_reflections(samples: Sequence[AVSample], reflections: ChainFile) -> list[AVSample]:
    """Fill `wrong`, and `chain` with its correction, of the samples that have a record in the file.

    Args:
        samples: the samples of one split; records of other splits are skipped.
        reflections: file of records with `"wrong"` and `"split"`, written by `data_prep/correct_cot.py`.

    Raises:
        DatasetError: if there is no such file, or a record of this split fits no sample.
    """
    by_row = {sample.row: index for index, sample in enumerate(samples)}
    splits = {sample.split for sample in samples}
    filled = list(samples)
    for place, record in _records(reflections.path):
        with _at(place):
            wrong = record.get("wrong")
            if not isinstance(wrong, str) or not wrong.strip() or not isinstance(record.get("split"), str):
                raise DatasetError(
                    "expected a record with the strings 'wrong' and 'split', as correct_cot.py writes it"
                )
            if reflections.answer_token in wrong:
                raise DatasetError(
                    f"the wrong chain holds {reflections.answer_token}, which would be read as the answer's"
                )
            if record["split"] not in splits:
                continue
            index = by_row.get(record["row"])
            if index is None or samples[index].uid != record["uid"]:
                raise DatasetError(f"no sample is {record['uid']!r} at row {record['row']!r}: collect mistakes again")
            sample = samples[index]
            _check_fields_agree(record, sample.key, category=sample.category, exp=sample.reference)
            if filled[index].wrong is not None:
                raise DatasetError(f"{sample.key} already has a mistake: keep one record a row")
            filled[index] = dataclasses.replace(sample, wrong=wrong, chain=_chain_fields(record, reflections)["chain"])
    return filled


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each record of a file with its place, file and line."""
    if not path.exists():
        raise DatasetError(f"there is no file of chains {path}: make one first, or leave it out")
    try:
        for place, record in read_records(path):
            with _at(place):
                _check_chain(record)
            yield place, record
    except (RecordError, NotPlainFileError) as error:
        raise DatasetError(str(error)) from error


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Name the place of a record at the start of its error."""
    try:
        yield
    except ValueError as error:  # also of the UTF-8 and JSON decoders
        raise DatasetError(f"{place}: {error}") from error


def _check_chain(record: Mapping[str, Any]) -> None:
    """Raise a ValueError unless a record has a chain's keys with the right types and texts that can be encoded."""
    if not all(type(record.get(name)) is kind for name, kind in CHAIN_KEYS.items()):  # True is an int, but no row
        keys = ", ".join(f"{name} ({kind.__name__})" for name, kind in CHAIN_KEYS.items())
        raise DatasetError(f"expected a JSON object with {keys}, not {json.dumps(record)[:80]}")
    texts = [record["uid"], record["category"], record["answer"], *record["steps"].values()]
    optional = [record.get("reference_type"), record.get("wrong"), record.get("split"), record.get("exp")]
    for text in [*texts, *(text for text in optional if text is not None)]:
        if not isinstance(text, str):
            raise DatasetError(f"{str(text)[:80]!r} is no text: the steps and the other fields of a row are strings")
        text.encode()  # a UnicodeEncodeError, which is a ValueError, for half a surrogate pair


def _check_fields_agree(record: Mapping[str, Any], row: str, **expected: str) -> None:
    for name, value in expected.items():
        if record.get(name, value) != value:
            raise DatasetError(f"{row} has the {name} {value!r}, not {record[name]!r}: rebuild the chains")


def _chain_fields(record: Mapping[str, Any], chains: ChainFile) -> dict[str, Any]:
    known = {
        "reference_type": record.get("reference_type"),
        "seen": _categories(record, "seen"),
        "heard": _categories(record, "heard"),
    }
    # The benchmark may know fields that a record lacks: OmniAVS has the type of a reference.
    return {"chain": chains.render(record["steps"], record["answer"])} | {
        k: v for k, v in known.items() if v is not None
    }


def _categories(record: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    """Return a list of categories; None means unknown, an empty list means that there are none."""
    value = record.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):  # a string is iterable, too
        raise DatasetError(f"{name} is {repr(value)[:80]}: expected a list of categories or null")
    return tuple(value)
