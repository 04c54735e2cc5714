"""Gold chains of thought: a JSON-lines file keyed by uid and row, joined to the rows of a benchmark.

{"uid": "abc_cat_1", "row": 0, "category": "cat", "steps": {"look": ..., "listen": ..., "read": ...}, "answer": ...}
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.data.files import DatasetError, Row
from aurora_rl.data.sample import AVSample
from aurora_rl.prompts import render_chain

CHAIN_KEYS = {"uid": str, "row": int, "category": str, "steps": dict, "answer": str}  # what each record must have


def add_chains(
    samples: Sequence[AVSample], chains: str | os.PathLike[str] | None, rows: Sequence[Row]
) -> list[AVSample]:
    """Fill `chain`, `reference_type`, `seen` and `heard` of the samples that the file has a record of.

    Args:
        samples: the samples of one split.
        chains: the file; None leaves the samples as they are.
        rows: all rows of the benchmark's table, those of other splits included: `rows[i].row` is i.

    Raises:
        DatasetError: if there is no such file, or a record fits no row.
    """
    if chains is None:
        return list(samples)
    fields = _read_chains(Path(chains), rows)
    return [dataclasses.replace(sample, **fields.get(sample.row, {})) for sample in samples]


def _read_chains(path: Path, rows: Sequence[Row]) -> dict[int, dict[str, Any]]:
    """The sample fields that a file of chains of thought fills, by row; each record is checked against its row."""
    if not path.is_file():
        raise DatasetError(f"there is no file of chains {path}: make one first, or leave `chains` out")
    fields: dict[int, dict[str, Any]] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = _parse_chain(line)
                row = _row_of_chain(record, rows)
                if row in fields:
                    raise DatasetError(f"{rows[row]} already has a chain: keep one record a row")
                fields[row] = _chain_fields(record)
            except ValueError as error:  # also of the UTF-8 and JSON decoders
                raise DatasetError(f"{path}:{number}: {error}") from error
    return fields


def _parse_chain(line: bytes) -> dict[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict) or not all(isinstance(record.get(name), kind) for name, kind in CHAIN_KEYS.items()):
        keys = ", ".join(f"{name} ({kind.__name__})" for name, kind in CHAIN_KEYS.items())
        raise DatasetError(f"expected a JSON object with {keys}, not {line[:80]!r}")
    return record


def _row_of_chain(record: Mapping[str, Any], rows: Sequence[Row]) -> int:
    """The row that a record belongs to, by uid and row; never by position (the authors' release did, and mixed up)."""
    uid, row = record["uid"], record["row"]
    if not 0 <= row < len(rows) or rows[row].uid != uid:
        table = rows[0].origin.rpartition(":")[0]
        raise DatasetError(f"{table} has no uid {uid!r} at row {row!r}: rebuild the chains for this file")
    for name, value in (("category", rows[row].category), ("exp", rows[row].reference)):
        if record.get(name, value) != value:
            raise DatasetError(f"{rows[row]} has the {name} {value!r}, not {record[name]!r}: rebuild the chains")
    return row


def _chain_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "chain": render_chain(record["steps"], record["answer"]),
        "reference_type": record.get("reference_type"),
        "seen": _categories(record, "seen"),
        "heard": _categories(record, "heard"),
    }


def _categories(record: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    """A list of categories; None where it is not known, which is not the same as none."""
    value = record.get(name)
    if value is None:
        return None
    if not isinstance(value, list):  # a string would be taken apart into letters
        raise DatasetError(f"{name} is {value!r}: expected a list of categories or null")
    return tuple(value)
