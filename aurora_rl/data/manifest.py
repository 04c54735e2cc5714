"""Manifests of own clips: JSONL, CSV or Parquet files with one row for each reference are found and read.

Neither media nor large libraries are loaded, so that a malformed row is an error within a second.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.data.files import MAX_TABLE_BYTES, DatasetError, rows_of_split
from aurora_rl.data.manifest_rows import DEFAULT_SPLIT, TAKEN_NAMES, ManifestRow, is_missing, read_row
from aurora_rl.files.existing import AnyPath, entries, what_is_there
from aurora_rl.files.plain import NotPlainFileError, check_plain_file, parse_record

logger = logging.getLogger(__name__)

JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (*JSON_LINES, ".csv", ".parquet")
LAYOUT = "a manifest (manifest.jsonl, .csv or .parquet, or the only such file) and the files that it names"

#: A row's place, and its record, or what is wrong with it.
_Record = tuple[str, Mapping[str, Any] | DatasetError]


def find_manifest(root: AnyPath) -> Path:
    """Return the manifest: the file itself, or the one in a folder.

    Raises:
        DatasetError: if there is none or several, or it is of no known kind.
    """
    path = Path(root)
    if path.is_dir():
        return _manifest_in(path)
    if not path.exists():
        raise DatasetError(f"there is no {path}: data_root must be a folder that holds {LAYOUT}; {what_is_there(path)}")
    if path.suffix.lower() not in SUFFIXES:
        hint = ", one JSON object a line" if path.suffix.lower() == ".json" else ""
        raise DatasetError(f"{path} is no manifest: expected {', '.join(SUFFIXES)}{hint}")
    return path


def _manifest_in(folder: Path) -> Path:
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()]
    files = [path for path in files if not path.name.startswith(".")]
    named = [path for path in files if path.stem == "manifest"]
    if len(named or files) == 1:
        return (named or files)[0]
    if not files:
        raise DatasetError(f"{folder} holds no manifest: expected {LAYOUT}; it holds {entries(folder)}")
    names = [path.name for path in named or files]
    raise DatasetError(
        f"{folder} holds several files that may be the manifest ({', '.join(names[:6])}): name one of them"
    )


def read_manifest(
    path: Path, *, columns: Mapping[str, str] | None = None, malformed: dict[int, str] | None = None
) -> list[ManifestRow]:
    """Read and check all rows of a manifest, those of other splits included.

    Args:
        path: the file.
        columns: the manifest's own name of a column by the name here.
        malformed: dict that receives the problem of each malformed row by the row's number; with None the first such
            row is an error.

    Raises:
        DatasetError: if the file cannot be read, has no rows, or has a malformed row or two rows of one id.
    """
    rows: list[ManifestRow] = []
    places: dict[str, str] = {}  # by id
    taken: set[str] = set()
    number = -1
    for number, (place, record) in enumerate(_records(path)):
        try:
            rows.append(_checked_row(record, number, place, columns or {}, places))
            taken |= TAKEN_NAMES & set(record) - set((columns or {}).values()) if isinstance(record, Mapping) else set()
        except DatasetError as error:
            if malformed is None:
                raise
            malformed[number] = str(error)
    if number < 0:
        raise DatasetError(f"{path} has no rows: expected one for each reference")
    names = {name: None for row in rows if row.extra is not None for name in json.loads(row.extra)}
    if names:  # a reward gets the same columns in every split
        rows = [dataclasses.replace(row, extra=json.dumps(names | json.loads(row.extra or "{}"))) for row in rows]
    for name in sorted(taken):
        logger.warning(
            "%s has the column %r, whose name means something else to reward functions, so that they do not get it: "
            "rename it, for example by columns: {my_%s: %s}", path.name, name, name, name
        )  # fmt: skip
    return rows


def _checked_row(
    record: Mapping[str, Any] | DatasetError, row: int, place: str, columns: Mapping[str, str], places: dict[str, str]
) -> ManifestRow:
    """Check a record and add its id to the places of ids."""
    if isinstance(record, DatasetError):
        raise record
    checked = read_row(record, row=row, place=place, columns=columns)
    other = places.setdefault(checked.uid, place)
    if other != place:
        raise DatasetError(f"{place}: the id {checked.uid!r} is that of {other}, too: give each row an id of its own")
    return checked


def read_splits(root: AnyPath, columns: Mapping[str, str] | None = None) -> set[str]:
    """Return the splits that a manifest's rows name; raises the errors of `find_manifest` and of reading the file."""
    name = (columns or {}).get("split", "split")
    values = [record.get(name) for _, record in _records(find_manifest(root)) if isinstance(record, Mapping)]
    return {DEFAULT_SPLIT if is_missing(value) else str(value).strip() for value in values}


def read_columns(path: Path) -> list[str]:
    """Return the names of a manifest's columns: those of its first rows, as JSON lines may leave some out."""
    records = [record for _, record in itertools.islice(_records(path), 100) if isinstance(record, Mapping)]
    return list(dict.fromkeys(str(name) for record in records for name in record))


def read_categories(root: AnyPath, split: str, columns: Mapping[str, str] | None = None) -> set[str]:
    """Read the categories that a split's rows name; raises the errors of `read_manifest`."""
    path = find_manifest(root)
    rows = rows_of_split(read_manifest(path, columns=columns), split, path=path)
    return {row.category for row in rows if row.category}


def _records(path: Path) -> Iterator[_Record]:
    """Yield place and record of each row, or what is wrong with it.

    Raises:
        DatasetError: if the file cannot be read, naming it and what was expected.
    """
    try:
        check_plain_file(path)
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise DatasetError(f"{path} has {path.stat().st_size} bytes: the limit is {MAX_TABLE_BYTES}, split it")
        readers = {".csv": _csv_records, ".parquet": _parquet_records}
        yield from readers.get(path.suffix.lower(), _json_records)(path)
    except (NotPlainFileError, OSError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from error


def _json_records(path: Path) -> Iterator[_Record]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path.name}:{number}"
            try:
                yield place, parse_record(line.removeprefix(b"\xef\xbb\xbf"))
            except ValueError as error:  # errors of the UTF-8 and JSON decoders as well
                problem = f"{place}: {error}; expected one JSON object a line in UTF-8, fix or drop the line"
                yield place, DatasetError(problem)


def _csv_records(path: Path) -> Iterator[_Record]:
    try:
        # utf-8-sig: a spreadsheet program may have put a byte-order mark before the header.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)  # an unclosed quote would swallow the rows after it
            _check_header(reader.fieldnames, path)
            line = reader.line_num + 1
            for record in reader:
                place = f"{path.name}:{line}"
                yield place, _whole(record, place)
                line = reader.line_num + 1
    except (csv.Error, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read {path}: {error}; expected a CSV file in UTF-8, save it so") from error


def _check_header(names: Sequence[str] | None, path: Path) -> None:
    if not names:
        raise DatasetError(f"{path} is empty: expected a first line with names of columns, such as video,reference")
    for separator, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(names) == 1 and separator in names[0]:
            raise DatasetError(f"{path} separates its columns by {word}: save it with commas, or as JSON lines")
    doubled = [name for name in names if names.count(name) > 1]
    if doubled:
        raise DatasetError(f"{path} has the column {doubled[0]!r} twice: rename or remove one of them")


def _whole(record: dict[Any, Any], place: str) -> Mapping[str, Any] | DatasetError:
    """Return a CSV row that has as many values as there are columns, or what is wrong with it."""
    missing = [name for name, value in record.items() if value is None]
    if None not in record and not missing:
        return record
    problem = f"no value for {missing}" if missing else "more values than columns"
    return DatasetError(f'{place} has {problem}: fix the row, and put a text with commas into "quotes"')


def _parquet_records(path: Path) -> Iterator[_Record]:
    import pyarrow as pa  # takes long, and other manifests do not need it
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(1024) for row in batch.to_pylist())
            for number, record in enumerate(rows):
                yield f"{path.name} row {number}", record
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"cannot read {path}: {error}; expected a Parquet file, write it again") from error
