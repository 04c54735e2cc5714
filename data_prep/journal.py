"""JSON-lines files that grow by one finished row at a time and survive a kill at any moment.

    {"uid": "abc_cat_1", "row": 0, ...}

A line is on disk before `append` returns, so what was answered once is never asked again. A kill leaves at most one
torn last line, which the next opening drops. A file belongs to one process at a time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aurora_rl.files.atomic import write_whole
from aurora_rl.files.output_lock import OutputInUseError, hold, lock_of
from aurora_rl.files.plain import parse_json, parse_record

logger = logging.getLogger(__name__)

Record = dict[str, Any]
RowKey = tuple[str, int]


class JournalError(ValueError):
    """A file of records that cannot be used as it is."""


def row_key(record: Mapping[str, Any]) -> RowKey:
    """`uid` and `row` of a record, unique across a benchmark; a `JournalError` where it has none."""
    uid, row = record.get("uid"), record.get("row")
    if not isinstance(uid, str) or not isinstance(row, int) or isinstance(row, bool):
        raise JournalError(f"expected a record with 'uid' (text) and 'row' (a number), not uid {uid!r}, row {row!r}")
    return uid, row


def read_records(path: Path) -> list[Record]:
    """Every record of a file, in its order.

    Raises:
        JournalError: naming the line, if it is no JSON object with uid and row; or if there is no such file.
    """
    if not path.is_file():
        raise JournalError(f"there is no file {path}")
    return _parse_lines(path, path.read_bytes().splitlines())


def records_by_row(path: Path) -> dict[RowKey, Record]:
    """The records of a file by uid and row.

    Raises:
        JournalError: as `read_records`, and if a row is there twice.
    """
    records: dict[RowKey, Record] = {}
    for record in read_records(path):
        if row_key(record) in records:
            raise JournalError(f"{path} holds uid {record['uid']!r}, row {record['row']} twice: keep one record a row")
        records[row_key(record)] = record
    return records


def to_lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Records as JSON lines."""
    return b"".join(_to_line(record) for record in records)


class RecordLog:
    """A file that records are appended to; a row may be there more than once.

    Args:
        path: the file, made with its folder where there is none.

    Attributes:
        records: what the file held when it was opened.

    Raises:
        JournalError: if another run writes to it, or a line other than the last is no record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = contextlib.ExitStack()
        try:
            self._lock.enter_context(hold(lock_of(path, is_folder=False), output=path))
        except OutputInUseError as error:
            raise JournalError(str(error)) from None
        if path.exists() and not path.is_file():
            self._lock.close()
            raise JournalError(f"{path} is no plain file: name another")
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self.records = self._recover()
        except BaseException:
            self.close()
            raise

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record; it is on disk when this returns."""
        row_key(record)
        size = os.fstat(self._fd).st_size
        try:
            _write_all(self._fd, _to_line(record))
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, size)  # a full disk leaves half a line, and the next one would follow it
            raise

    def rewrite(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Replace all records, in the order of their rows; the file cannot be appended to afterwards."""
        write_whole(self.path, to_lines(sorted(records, key=lambda record: (record["row"], record["uid"]))))
        self.close()

    def close(self) -> None:
        """Let others open the file; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _recover(self) -> list[Record]:
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            self._mend_last_line(data[end:], start=end)
            data = self.path.read_bytes()
        return _parse_lines(self.path, data.splitlines())

    def _mend_last_line(self, line: bytes, *, start: int) -> None:
        """Complete a last line that lacks only its end, as an editor may leave it; drop one that was torn by a kill."""
        try:
            row_key(parse_json(line))
        except (ValueError, AttributeError):
            logger.warning("%s: dropped a last line of %d bytes that a kill had torn", self.path, len(line))
            os.ftruncate(self._fd, start)
        else:
            _write_all(self._fd, b"\n")
        os.fsync(self._fd)


class Journal(RecordLog):
    """A `RecordLog` with one record a row: the output of a run, and the memory of what need not be asked again.

    Raises:
        JournalError: also if a row is in the file twice.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._by_key: dict[RowKey, Record] = {}
        try:
            for record in self.records:
                self._remember(record)
        except JournalError:
            self.close()
            raise

    def __contains__(self, key: object) -> bool:
        return key in self._by_key

    def append(self, record: Mapping[str, Any]) -> None:
        """Add the record of a row that has none; a `JournalError` where it has one."""
        self._remember(record)
        super().append(record)

    def finish(self) -> None:
        """Put the records into the order of their rows, so that the file does not tell who answered first."""
        self.rewrite(self._by_key.values())

    def _remember(self, record: Mapping[str, Any]) -> None:
        key = row_key(record)
        if key in self._by_key:
            raise JournalError(f"{self.path} already holds uid {key[0]!r}, row {key[1]}: keep one record a row")
        self._by_key[key] = dict(record)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _to_line(record: Mapping[str, Any]) -> bytes:
    # Half a surrogate pair, which a reply may hold, has no UTF-8: it stays the JSON escape it came as.
    return json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def _parse_lines(path: Path, lines: Iterable[bytes]) -> list[Record]:
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = parse_record(line)
            row_key(record)
        except ValueError as error:  # also of the UTF-8 and JSON decoders
            raise JournalError(f"{path}:{number}: {error}; mend or remove the line") from error
        records.append(record)
    return records
