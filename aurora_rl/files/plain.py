"""Files that come from elsewhere, read only where they are plain files, and JSON that cannot bring a reader down.

A pipe in the place of a file would have its reader wait for ever, a device would never end. JSON that is nested some
thousand deep ends Python's decoder with an error of its own kind, and what it leaves ends the encoder.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_JSON_DEPTH = 100  # of lists and objects in each other; our own files have 6


class NotPlainFileError(ValueError):
    """What has a file's name is a pipe, a device, a socket or a folder, or a link to one."""


class RecordError(ValueError):
    """A line of a file is no record.

    Args:
        place: `file:line`, with which the text begins.
        reason: what is wrong with it.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place, self.reason = place, reason


def check_plain_file(path: str | os.PathLike[str]) -> None:
    """Refuse what is no plain file, before it is opened.

    Raises:
        NotPlainFileError: naming the file.
        FileNotFoundError: if there is none.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise NotPlainFileError(f"{path} is no plain file but {_kind(mode)}: put the file itself there")


def read_text_file(path: str | os.PathLike[str]) -> str:
    """The text of a plain file in UTF-8; raises as `check_plain_file`, and a ValueError where it is no text."""
    check_plain_file(path)
    return Path(path).read_text(encoding="utf-8")


def parse_json(text: str | bytes) -> Any:
    """As `json.loads`; whatever is wrong with the text is a ValueError, nesting beyond `MAX_JSON_DEPTH` too."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    num_brackets = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if num_brackets > MAX_JSON_DEPTH:
        _check_depth(value)
    return value


def parse_record(line: str | bytes) -> dict[str, Any]:
    """The JSON object of a line; a ValueError where it is none."""
    record = parse_json(line)
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, not {line[:80]!r}")
    return record


def read_records(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each record of a JSON-lines file with its place, `file:line`; empty lines are left out.

    Raises:
        RecordError: naming the place, if a line is no JSON object in UTF-8.
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
            except ValueError as error:  # also of the UTF-8 and JSON decoders
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
