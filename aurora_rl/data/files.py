"""The common part of the loaders of benchmarks: rows of a table, and a row's files under a root.

A loader (`ref_avs`, `avsbench`, `omni_avs`) reads its table into `Row`s, finds each row's files with `BenchmarkFiles`
and hands both to `collect_samples`. Tables and folders come from downloads: a name that leads out of the root, by `..`
or by a link, is refused, and a missing number in a folder is an error, never a shorter clip.
"""

from __future__ import annotations

import csv
import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from aurora_rl.data.sample import AVSample
from aurora_rl.files.existing import what_is_there

logger = logging.getLogger(__name__)

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
MASK_SUFFIXES = (".png",)
MAX_TABLE_BYTES = 256 * 2**20  # 100 times Ref-AVSBench's table; a table is read whole
MAX_NAME_BYTES = 255  # longest file name on every common file system
NUM_PROBLEMS_SHOWN = 5

FileKind = Literal["frames", "masks"]
OnMissing = Literal["error", "drop"]


class DatasetError(ValueError):
    """Rows of a benchmark that cannot be loaded."""


class UnsafePathError(DatasetError):
    """A row names a folder that is no plain name, or its files lie outside the root; they are never opened."""


class MissingFilesError(Exception):
    """A row's files are missing; the text names only the files, so that rows with the same problem are grouped."""


class NoFilesError(MissingFilesError):
    """None of the files is there."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a benchmark's table; the fields are `AVSample`'s."""

    uid: str
    row: int
    split: str
    category: str
    reference: str
    origin: str

    def __str__(self) -> str:
        return f"clip {self.uid!r} (row {self.row}, {self.origin})"

    def to_sample(
        self,
        *,
        media_id: str,
        fps: float,
        frame_paths: tuple[str, ...],
        audio_path: str | None,
        mask_paths: tuple[str, ...],
        reference_type: str | None = None,
        reference_media: tuple[str, ...] = (),
    ) -> AVSample:
        """Make the sample of this row and its files."""
        return AVSample(
            uid=self.uid,
            row=self.row,
            split=self.split,
            media_id=media_id,
            category=self.category,
            reference=self.reference,
            fps=fps,
            frame_paths=frame_paths,
            audio_path=audio_path,
            mask_paths=mask_paths,
            reference_type=reference_type,
            reference_media=reference_media,
            origin=self.origin,
        )


AnyRow = TypeVar("AnyRow", bound=Row)


def read_table(
    path: Path, columns: Sequence[str], *, header: str, layout: str, malformed: dict[int, str] | None = None
) -> list[dict[str, Any]]:
    """Read a CSV file with a header line.

    Args:
        path: the file.
        columns: required columns, each with a value in every row.
        header: the file's expected first line, for the error.
        layout: files and folders of the root, for the error.
        malformed: dict that receives the problem of each row with a missing or surplus value, by the row's number; with
            None the first such row is an error.

    Returns:
        One dict by column for each row, malformed ones included.

    Raises:
        DatasetError: if the file is too large, cannot be read, lacks a column, or has a malformed row.
    """
    if not path.is_file():
        raise DatasetError(f"there is no {path}: root must be the folder that holds {layout}; {what_is_there(path)}")
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise DatasetError(f"{path} has {path.stat().st_size} bytes: the limit is {MAX_TABLE_BYTES}, is it the table?")
    try:
        # utf-8-sig: a spreadsheet program may have put a byte-order mark before the header.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise DatasetError(f"{path} lacks the column(s) {missing}: its first line must be {header}")
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read {path}: {error}; expected a CSV file in UTF-8") from error
    for number, fields in enumerate(rows):
        try:
            _check_fields(fields, columns, place=f"{path}:{number + 2}")
        except DatasetError as error:
            if malformed is None:
                raise
            malformed[number] = str(error)
    return rows


def _check_fields(fields: Mapping[Any, Any], columns: Sequence[str], *, place: str) -> None:
    empty = [name for name in columns if not fields[name]]
    if empty or None in fields:
        problem = f"no value for {empty}" if empty else "more values than columns"
        raise DatasetError(f"{place} ({columns[0]} {fields[columns[0]]!r}) has {problem}: fix or drop the row")


def rows_of_split(rows: Sequence[AnyRow], split: str, *, path: Path) -> list[AnyRow]:
    """Return the rows of one split; raises a `DatasetError` that lists the splits if there is no such split."""
    splits = {row.split for row in rows}
    if split not in splits:
        raise DatasetError(f"{path} has no split {split!r}: expected one of {sorted(splits)}")
    return [row for row in rows if row.split == split]


def collect_samples(
    rows: Sequence[AnyRow], build: Callable[[AnyRow], AVSample], *, split: str, on_missing: OnMissing = "error"
) -> list[AVSample]:
    """Build the sample of each row; rows whose files are missing are reported together.

    Args:
        rows: rows of the split.
        build: function that makes a row's sample; it raises `MissingFilesError` where files are missing.
        split: name of the split, for the report.
        on_missing: "error", or "drop" to skip such rows and log how many.

    Raises:
        DatasetError: if files are missing and `on_missing` is "error".
    """
    if on_missing not in ("error", "drop"):
        raise ValueError(f"on_missing is {on_missing!r}: expected 'error' or 'drop'")
    samples: list[AVSample] = []
    problems: dict[str, list[AnyRow]] = {}  # each problem -> the rows that have it
    for row in rows:
        try:
            samples.append(build(row))
        except MissingFilesError as error:
            problems.setdefault(str(error), []).append(row)
    if problems:
        num_bad = sum(len(affected) for affected in problems.values())
        lines = [f"{num_bad} of the {len(rows)} rows of split {split!r} lack files:"]
        for problem, affected in list(problems.items())[:NUM_PROBLEMS_SHOWN]:
            others = f" [{len(affected) - 1} other row(s) have the same problem]" if len(affected) > 1 else ""
            lines.append(f"  {affected[0]}: {problem}{others}")
        if len(problems) > NUM_PROBLEMS_SHOWN:
            lines.append(f"  ... and {len(problems) - NUM_PROBLEMS_SHOWN} further problem(s)")
        message = "\n".join(lines)
        if on_missing == "error":
            raise DatasetError(message)
        logger.warning("Dropped rows. %s", message)
    return samples


def check_plain_names(row: Row, *parts: str) -> None:
    """Check that each part is one plain file name, which cannot lead out of its folder.

    Raises:
        UnsafePathError: naming the row and the part.
    """
    for part in parts:
        if part in ("", ".", "..") or any(character in part for character in "/\\\0"):
            raise UnsafePathError(
                f"{row} names the folder {part!r}, which is no plain name: fix the row's uid, fid, name or category"
            )
        if len(os.fsencode(part)) > MAX_NAME_BYTES:
            raise UnsafePathError(
                f"row {row.row} ({row.origin}) names a folder of {len(part)} characters ({part[:40]!r}...): "
                f"the limit is {MAX_NAME_BYTES} bytes, fix the row's uid, fid, name or category"
            )


class BenchmarkFiles:
    """Finds the files of a row under the root; each folder is listed once, because a clip has many rows.

    Args:
        root: folder of the benchmark; no path leads out of it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real_root = root.resolve()
        self._inside: set[Path] = set()  # paths known to lie under the root
        self._numbered: dict[tuple[Path, str], tuple[str, ...]] = {}  # folder and prefix -> its files in order

    def path(self, row: Row, *parts: str) -> Path:
        """Join the parts under the root; raises an `UnsafePathError` where a part or a link leads out of it."""
        check_plain_names(row, *parts)
        path = self.root.joinpath(*parts)
        self._check_inside_root(row, path)
        return path

    def audio(self, row: Row, *parts: str) -> str:
        """Return the audio file at the parts under the root; raises a `NoFilesError` where there is none."""
        path = self.path(row, *parts)
        if not path.is_file():
            raise NoFilesError(f"the audio {path} is missing: add it or drop the row")
        return str(path)

    def numbered(
        self,
        row: Row,
        folder: Path,
        *,
        kind: FileKind,
        num_expected: int | None,
        prefix: str = "",
        first: int | None = None,
    ) -> tuple[str, ...]:
        """List a folder's images in the order of their numbers, which must have no gap.

        Args:
            row: row of the files, for errors.
            folder: folder, from `path`.
            kind: frames (JPEG or PNG) or masks (PNG).
            num_expected: number of images that there must be; None for any number.
            prefix: part of the name before the number ("abc_" of "abc_1.png").
            first: first number; None for 0 or 1, whichever exists.

        Raises:
            MissingFilesError: if a file is missing, surplus, or has another name; `NoFilesError` if there is none.
            UnsafePathError: if a file is a link out of the root.
        """
        if (folder, prefix) not in self._numbered:
            paths = list_images(folder, kind)
            numbered = _by_number(paths, folder=folder, kind=kind, prefix=prefix)
            _check_no_gap(numbered, folder=folder, kind=kind, num_expected=num_expected, prefix=prefix, first=first)
            for path in paths:
                if path.is_symlink():
                    self._check_inside_root(row, path)
            self._numbered[folder, prefix] = tuple(str(numbered[number]) for number in sorted(numbered))
        paths_in_order = self._numbered[folder, prefix]
        if num_expected is not None and len(paths_in_order) != num_expected:
            raise MissingFilesError(
                f"{folder} has {len(paths_in_order)} {kind}, expected {num_expected}: remove the surplus, or load with "
                "another num_frames"
            )
        return paths_in_order

    def _check_inside_root(self, row: Row, path: Path) -> None:
        if path in self._inside:
            return
        real_path = path.resolve()
        if not real_path.is_relative_to(self._real_root):
            raise UnsafePathError(
                f"{row} has {path}, a link to {real_path} outside {self._real_root}: copy the files in, or give the "
                "folder that really holds them as root"
            )
        self._inside.add(path)


def list_images(folder: Path, kind: FileKind) -> list[Path]:
    """List the frames or masks of a folder in any order; empty where there is no folder."""
    suffixes = FRAME_SUFFIXES if kind == "frames" else MASK_SUFFIXES
    if not folder.is_dir():
        return []
    # File managers write files with a leading dot, such as "._0.jpg".
    return [path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith(".")]


def _by_number(paths: Sequence[Path], *, folder: Path, kind: str, prefix: str) -> dict[int, Path]:
    """Key the paths by their number, which is the name without the prefix ("3.jpg", "00003.png", "abc_3.png")."""
    if not paths:
        raise NoFilesError(f"{folder} holds no {kind}: add them or drop the row")
    numbered: dict[int, Path] = {}
    for path in paths:
        digits = path.stem.removeprefix(prefix)
        if not path.stem.startswith(prefix) or not digits.isdecimal():
            expected = f"not {prefix}<number>" if prefix else "no number"
            raise MissingFilesError(f"{path} is among the {kind} but its name is {expected}: rename or remove it")
        other = numbered.setdefault(int(digits), path)
        if other is not path:
            raise MissingFilesError(f"{other} and {path} are one frame's {kind}: remove one of them")
    return numbered


def _check_no_gap(
    numbered: Mapping[int, Path], *, folder: Path, kind: str, num_expected: int | None, prefix: str, first: int | None
) -> None:
    """Check that the numbers are consecutive from `first` (None: from 0 or 1), as many as expected."""
    last = max(numbered)
    if first is None:
        first = 1 if 0 not in numbered and (num_expected is None or last >= num_expected) else 0
    length = num_expected or last + 1 - first
    missing = next((number for number in range(first, first + length) if number not in numbered), None)
    if missing is not None:
        example = numbered[last]
        file = example.with_stem(prefix + str(missing).zfill(len(example.stem) - len(prefix)))
        raise MissingFilesError(
            f"{folder} has {len(numbered)} {kind}, expected {length}: {file} is missing, add it or drop the row"
        )
