"""JSON-lines files that grow by one finished record at a time and stay valid if the process is killed.

    {"uid": "abc_cat_1", "row": 0, ...}

A line is on disk before `append` returns, so that no record has to be computed again. A killed process leaves at most
one incomplete last line, which the next opening drops; any other invalid line is an error that names file and line.
Only one process at a time can open a file.

    Journal       records of any kind
    ResumeFile    records of one run: its first line identifies the run, and the finished run removes it
    RowJournal    one record a row: the output of a run, which skips these rows when it is resumed
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aurora_rl.files.atomic import write_whole
from aurora_rl.files.output_lock import OutputInUseError, hold, lock_of
from aurora_rl.files.plain import RecordError, check_plain_file, parse_json, parse_record, read_records

logger = logging.getLogger(__name__)

Record = dict[str, Any]
RowKey = tuple[str, int]


class JournalError(ValueError):
    """A file of records is invalid, missing or in use."""


class Journal:
    """Opens a file that records are appended to, and reads its records.

    Args:
        path: path of the file, which is made with its folder if there is none.
        check: function that gets every record that is read or appended; its `ValueError` refuses the record.

    Attributes:
        records: records that the file held when it was opened.

    Raises:
        JournalError: if another process writes to the file, or a line is invalid, except an incomplete last one.
        NotPlainFileError: if the path is not a plain file.
    """

    def __init__(self, path: Path, *, check: Callable[[Mapping[str, Any]], object] | None = None) -> None:
        self.path, self._check = path, check
        with contextlib.ExitStack() as opened:
            try:
                opened.enter_context(hold(lock_of(path, is_folder=False), output=path))
            except OutputInUseError as error:
                raise JournalError(str(error)) from None
            if path.exists():
                check_plain_file(path)  # before it is opened: opening a pipe would wait
            self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            opened.callback(os.close, self._fd)
            self.records = self._recover()
            self._opened = opened.pop_all()

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a record; it is on disk when this returns."""
        if self._check is not None:
            self._check(record)
        self._write(record)

    def rewrite(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Replace all records; the file cannot be appended to afterwards."""
        write_whole(self.path, to_lines(records))
        self.close()

    def close(self) -> None:
        """Release the file for other processes; may be called twice."""
        self._opened.close()
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        size = os.fstat(self._fd).st_size
        try:
            _write_all(self._fd, to_lines([record]))
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, size)  # a full disk leaves half a line, and the next one would follow it
            raise

    def _recover(self) -> list[Record]:
        self._mend_last_line()
        return list(_checked_records(self.path, self._check))

    def _mend_last_line(self) -> None:
        """Complete a last line that only lacks its line end, as some editors write it; drop an incomplete one."""
        data = self.path.read_bytes()
        start = data.rfind(b"\n") + 1
        if start == len(data):
            return
        try:
            parse_record(data[start:])
        except ValueError:
            logger.warning("%s: dropped a last line of %d bytes that a kill had torn", self.path, len(data) - start)
            os.ftruncate(self._fd, start)
        else:
            _write_all(self._fd, b"\n")
        os.fsync(self._fd)


class ResumeFile(Journal):
    """A journal beside a run's output; a run with the same identity resumes from it, any other one empties it.

    Args:
        path: path of the file.
        identity: values that two runs must share for one to resume from the other's records; JSON, the first line.

    Attributes:
        records: records of the interrupted run, in the order in which they were made.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._identity = parse_json(to_lines([identity]))
        super().__init__(path)

    def remove(self) -> None:
        """Delete and close the file of a finished run."""
        self.path.unlink()
        self.close()

    def _recover(self) -> list[Record]:
        with self.path.open("rb") as file:
            first_line = file.readline()
        if _is_record(first_line, self._identity):
            return super()._recover()[1:]
        if first_line:
            logger.warning("%s belongs to another run, with other arguments or data: starting without it", self.path)
        os.ftruncate(self._fd, 0)
        self._write(self._identity)
        return []


class RowJournal(Journal):
    """A journal with one record a row.

    Raises:
        JournalError: also if a row is in the file twice.
    """

    def __init__(self, path: Path) -> None:
        self._by_key: dict[RowKey, Mapping[str, Any]] = {}
        super().__init__(path, check=self._remember)

    def __contains__(self, key: object) -> bool:
        return key in self._by_key

    def finish(self) -> None:
        """Sort the records by row, so that the file does not depend on the order of the answers."""
        self.rewrite(sort_by_row(self._by_key.values()))

    def _remember(self, record: Mapping[str, Any]) -> None:
        key = row_key(record)
        if key in self._by_key:
            raise JournalError(f"{self.path.name} already holds uid {key[0]!r}, row {key[1]}: keep one record a row")
        self._by_key[key] = record


def row_key(record: Mapping[str, Any]) -> RowKey:
    """Return `uid` and `row` of a record, unique across a benchmark; a `JournalError` if it has none."""
    uid, row = record.get("uid"), record.get("row")
    if not isinstance(uid, str) or not isinstance(row, int) or isinstance(row, bool):
        raise JournalError(f"expected a record with 'uid' (text) and 'row' (a number), not uid {uid!r}, row {row!r}")
    return uid, row


def sort_by_row(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Sort records by row."""
    return sorted(records, key=lambda record: (record["row"], record["uid"]))


def read_rows(path: Path) -> list[Record]:
    """Read the records of a file, in its order.

    Raises:
        JournalError: if a line is not a JSON object with uid and row, which the error names; or the file is missing.
    """
    if not path.is_file():
        raise JournalError(f"there is no file {path}")
    return list(_checked_records(path, row_key))


def records_by_row(path: Path) -> dict[RowKey, Record]:
    """Read the records of a file by uid and row.

    Raises:
        JournalError: as `read_rows`, and if two records have the same row.
    """
    records: dict[RowKey, Record] = {}
    for record in read_rows(path):
        if row_key(record) in records:
            raise JournalError(f"{path} holds uid {record['uid']!r}, row {record['row']} twice: keep one record a row")
        records[row_key(record)] = record
    return records


def to_lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Encode records as JSON lines."""
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    # Half a surrogate pair, which a reply may hold, has no UTF-8: it stays a JSON escape.
    return b"".join(line.encode(errors="backslashreplace") for line in lines)


def _checked_records(path: Path, check: Callable[[Mapping[str, Any]], object] | None) -> Iterator[Record]:
    try:
        for place, record in read_records(path):
            try:
                if check is not None:
                    check(record)
            except ValueError as error:
                raise RecordError(place, str(error)) from error
            yield record
    except RecordError as error:
        raise JournalError(f"{error}; repair or remove the line") from error


def _is_record(line: bytes, expected: object) -> bool:
    try:
        return bool(parse_json(line) == expected)
    except ValueError:
        return False


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
