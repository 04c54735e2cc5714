"""Safe reading of files from outside: plain files only, and JSON of limited depth.

Reading a pipe may wait for ever, a device may never end. JSON that is nested some thousand levels deep ends Python's
decoder by a RecursionError, which is no ValueError, or passes it and ends the encoder.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_JSON_DEPTH = 100  # nested lists and objects; our own files have 6 levels


class NotPlainFileError(ValueError):
    """A file's path is that of a pipe, a device, a socket or a folder, or of a link to one."""


class RecordError(ValueError):
    """A line of a file is not a valid record.

    Args:
        place: `file:line`, the beginning of the text.
        reason: what is wrong with the line.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place, self.reason = place, reason


def check_plain_file(path: str | os.PathLike[str]) -> None:
    """Check that a path is a plain file, before it is opened.

    Raises:
        NotPlainFileError: if it is something else; the error names the path.
        FileNotFoundError: if there is no such file.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise NotPlainFileError(f"{path} is no plain file but {_kind(mode)}: put the file itself there")


def read_text_file(path: str | os.PathLike[str]) -> str:
    """Read a plain file's UTF-8 text; raises as `check_plain_file`, and a ValueError if it is not text."""
    check_plain_file(path)
    return Path(path).read_text(encoding="utf-8")


def parse_json(text: str | bytes) -> Any:
    """Parse as `json.loads`; every error of the text is a ValueError, also nesting beyond `MAX_JSON_DEPTH`."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    num_brackets = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if num_brackets > MAX_JSON_DEPTH:
        _check_depth(value)
    return value


def parse_record(line: str | bytes) -> dict[str, Any]:
    """Parse the JSON object of a line; a ValueError if it is not one."""
    record = parse_json(line)
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, not {line[:80]!r}")
    return record


def read_records(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each record of a JSON-lines file with its place, `file:line`; empty lines are skipped.

    Raises:
        RecordError: if a line is not a JSON object in UTF-8; the error names the place.
        NotPlainFileError, FileNotFoundError: as `check_plain_file`.
    """
    check_plain_file(path)
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                record = parse_record(line)
            except ValueError as error:  # errors of the UTF-8 and JSON decoders as well
                raise RecordError(place, str(error)) from error
            yield place, record


def _check_depth(value: Any) -> None:
    level, depth = [value] if isinstance(value, list | dict) else [], 0
    while level:
        depth += 1
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} deep")
        inner = [list(each.values()) if isinstance(each, dict) else each for each in level]
        level = [child for children in inner for child in children if isinstance(child, list | dict)]


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "a pipe",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
        stat.S_IFDIR: "a folder",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")
