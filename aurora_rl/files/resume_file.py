"""Records of a long run that survive its end, however it ends.

A JSON-lines file beside the run's output: the first line says of what run it is, each further line is flushed as soon
as there is something to say. A run of the same identity goes on from it; the finished run removes it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from aurora_rl.files.plain import check_plain_file, parse_json

logger = logging.getLogger(__name__)


class ResumeFile:
    """Opens a resume file, and reads what an interrupted run of the same identity left in it.

    Args:
        path: the file.
        identity: what two runs must have in common for one to go on from the other's records; JSON.

    Raises:
        NotPlainFileError: if something else has the file's name.

    Attributes:
        records: the records of the interrupted run, in the order in which they were made.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        whole = self._read(dict(identity))
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            check_plain_file(path)
        self._file = path.open("r+b" if whole else "wb")
        if whole:
            self._file.truncate(whole)  # a kill may have cut the last line off
            self._file.seek(whole)
        else:
            self.records = []
            self._write(dict(identity))

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record; once this returns, the record outlives the process."""
        self._write(record)

    def remove(self) -> None:
        """Close the resume file of a finished run and delete it."""
        self._file.close()
        self.path.unlink()

    def __enter__(self) -> ResumeFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def _read(self, identity: dict[str, Any]) -> int:
        """Fill `records` and return the length in bytes of the whole lines; 0 if the file is of another run."""
        if not self.path.is_file():
            return 0
        whole = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                record = _parse(line)
                if number == 0 and record != identity:
                    logger.warning("%s is of another run, with other arguments or data: starting anew", self.path)
                    return 0
                if record is None:
                    break
                if number:
                    self.records.append(record)
                whole += len(line)
        return whole


def fingerprint(files: Iterable[tuple[str, os.stat_result]]) -> str:
    """A hash of files' names, sizes and times of change, in any order."""
    facts = sorted((name, status.st_size, status.st_mtime_ns) for name, status in files)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _parse(line: bytes) -> dict[str, Any] | None:
    """A whole line's record; None if it was cut off."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = parse_json(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
