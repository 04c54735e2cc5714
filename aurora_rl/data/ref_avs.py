"""Ref-AVSBench (and whatever has its layout, such as our synthetic benchmark) as a list of samples.

First room of the flow on the data side: rows of metadata.csv become `AVSample`s, whose files exist and agree in
number; `media.load_clip` reads them later. Two real rows, the second one null (its audio is muted):

    vid,uid,split,fid,exp
    --KCIeTv6PM_14000_24000,--KCIeTv6PM_14000_24000_cat_1,val,0,The object having white and gray fur.
    ciaPfihYEEk_3000_13000,null_m-ciaPfihYEEk_3000_13000_null_1,train,0,The object making a sound with a lower rhythm

    media/<id>/frames/{0..9}.jpg    media/<id>/audio.wav    gt_mask/<id>/fid_<fid>/0000{0..9}.png

`vid` drops the `null_c-` or `null_m-` of a null row, so `<id>` comes from the uid alone: looked up by `vid`, a null
reference would get a real object's masks as its truth.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from aurora_rl.data.sample import AVSample
from aurora_rl.prompts import NULL_CATEGORY, render_chain

logger = logging.getLogger(__name__)

METADATA_FILE = "metadata.csv"
METADATA_COLUMNS = ("uid", "split", "fid", "exp")
UNFINISHED_SPLIT = "TODO"  # 25 rows of the official file that its authors never assigned
CROSSED_AUDIO_PREFIX = "null_c-"
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
MASK_SUFFIXES = (".png",)
CHAIN_KEYS = {"uid": str, "row": int, "category": str, "steps": dict, "answer": str}  # what each record must have
NUM_PROBLEMS_SHOWN = 5


class DatasetError(ValueError):
    """Rows of a benchmark that cannot be loaded as they are."""


@dataclasses.dataclass(frozen=True)
class _Row:
    """One line of metadata.csv."""

    uid: str
    row: int
    split: str
    fid: str
    reference: str

    @property
    def media_id(self) -> str:
        """The uid without category and number, null prefix kept."""
        return self.uid.rsplit("_", 2)[0]

    @property
    def category(self) -> str:
        return self.uid.split("_")[-2]

    def __str__(self) -> str:
        # Line 1 of the file is the header, so row 0 stands in line 2.
        return f"clip {self.uid!r} (row {self.row}, {METADATA_FILE}:{self.row + 2})"


def load_ref_avs(
    root: str | os.PathLike[str],
    split: str,
    *,
    fps: float = 1.0,
    num_frames: int | None = 10,
    chains: str | os.PathLike[str] | None = None,
    on_missing: Literal["error", "drop"] = "error",
) -> list[AVSample]:
    """List the samples of one split, checking that each one's files are there.

    Args:
        root: folder of the benchmark, which holds metadata.csv, media/ and gt_mask/.
        split: name of the split as in metadata.csv.
        fps: frames a second of the clips.
        num_frames: how many frames and masks each clip must have; None takes any number, the same for both.
        chains: JSON-lines file of chains of thought keyed by uid and row, which fill `chain`, `reference_type`, `seen`
            and `heard`; rows without a record keep None there.
        on_missing: "error", or "drop" to leave rows with missing files out and log how many.

    Returns:
        The samples in the file's order. Duplicate rows of the file stay, told apart by `row`.

    Raises:
        DatasetError: if metadata.csv is malformed or lacks the split, if files are missing or lie outside the root, or
            if a chain of thought fits no row.
    """
    if on_missing not in ("error", "drop"):
        raise ValueError(f"on_missing is {on_missing!r}: expected 'error' or 'drop'")
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}: expected a positive number, or None for any")
    root = Path(root)
    all_rows = _read_metadata(root / METADATA_FILE)
    rows = _rows_of_split(all_rows, split, path=root / METADATA_FILE)
    gold = _read_chains(Path(chains), all_rows) if chains is not None else {}
    index = _FileIndex(root, num_frames=num_frames)

    samples: list[AVSample] = []
    problems: dict[str, list[_Row]] = {}  # each trouble -> the rows that have it
    for row in rows:
        try:
            sample = _build_sample(row, index, fps=fps)
        except _MissingFilesError as error:
            problems.setdefault(str(error), []).append(row)
        else:
            samples.append(dataclasses.replace(sample, **gold.get(row.row, {})))
    if problems:
        message = _describe_problems(problems, num_rows=len(rows), split=split)
        if on_missing == "error":
            raise DatasetError(message)
        logger.warning("Dropped rows. %s", message)
    return samples


def _read_metadata(path: Path) -> list[_Row]:
    """All rows of metadata.csv, those of unfinished splits included, so that `row` counts the file's own rows."""
    if not path.is_file():
        raise DatasetError(
            f"there is no {path}: root must be the folder that holds {METADATA_FILE}, media/ and gt_mask/"
        )
    try:
        # utf-8-sig: a spreadsheet program may have put a byte-order mark before the header.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in METADATA_COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DatasetError(
                    f"{path} lacks the column(s) {missing}: its first line must be vid,uid,split,fid,exp"
                )
            return [_parse_row(fields, row=row, path=path) for row, fields in enumerate(reader)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read {path}: {error}; expected a CSV file in UTF-8") from error


def _parse_row(fields: Mapping[str, Any], *, row: int, path: Path) -> _Row:
    place = f"{path}:{row + 2}"
    empty = [name for name in METADATA_COLUMNS if not fields[name]]
    if empty or None in fields:
        trouble = f"no value for {empty}" if empty else "more values than columns"
        raise DatasetError(f"{place} (uid {fields['uid']!r}) has {trouble}: fix or drop the row")
    parts = fields["uid"].rsplit("_", 2)
    if len(parts) != 3 or not all(parts):
        raise DatasetError(f"{place} has the uid {fields['uid']!r}: expected <id>_<category>_<number>")
    return _Row(fields["uid"], row, fields["split"], fields["fid"], fields["exp"])


def _rows_of_split(rows: Sequence[_Row], split: str, *, path: Path) -> list[_Row]:
    counts = Counter(row.split for row in rows)
    num_unfinished = counts.pop(UNFINISHED_SPLIT, 0)
    if num_unfinished:
        logger.warning("%s: dropped %d row(s) of split %r", path, num_unfinished, UNFINISHED_SPLIT)
    if split not in counts:
        raise DatasetError(f"{path} has no split {split!r}: expected one of {sorted(counts)}")
    return [row for row in rows if row.split == split]


def _build_sample(row: _Row, index: _FileIndex, *, fps: float) -> AVSample:
    frame_paths = index.frame_paths(row)
    return AVSample(
        uid=row.uid,
        row=row.row,
        split=row.split,
        media_id=row.media_id,
        category=row.category,
        reference=row.reference,
        fps=fps,
        frame_paths=frame_paths,
        audio_path=index.audio_path(row),
        mask_paths=index.mask_paths(row, num_frames=len(frame_paths)),
    )


class _MissingFilesError(Exception):
    """A row's files are missing; the text names the files but not the row, so that rows with one trouble group."""


class _FileIndex:
    """Finds the files of a row under the root; looks each folder up once, because a clip has many rows."""

    def __init__(self, root: Path, *, num_frames: int | None) -> None:
        self.root = root
        self.num_frames = num_frames
        self._real_root = root.resolve()
        self._inside: set[Path] = set()  # paths found to lie under the root
        self._numbered: dict[Path, tuple[str, ...]] = {}  # folder -> its files in order

    def frame_paths(self, row: _Row) -> tuple[str, ...]:
        """Frames in time order."""
        folder = self._path(row, "media", row.media_id, "frames")
        return self._numbered_files(row, folder, kind="frames", num_expected=self.num_frames)

    def mask_paths(self, row: _Row, *, num_frames: int) -> tuple[str, ...]:
        """Masks in time order; none for a null row that ships none."""
        folder = self._path(row, "gt_mask", row.media_id, f"fid_{row.fid}")
        if row.category == NULL_CATEGORY and not _list_images(folder, MASK_SUFFIXES):
            return ()
        return self._numbered_files(row, folder, kind="masks", num_expected=num_frames)

    def audio_path(self, row: _Row) -> str:
        """The clip's audio file."""
        path = self._path(row, "media", row.media_id, "audio.wav")
        if row.media_id.startswith(CROSSED_AUDIO_PREFIX):
            # Where both files exist, the one in media_cross is the crossed audio that makes the reference null.
            crossed = self._path(row, "media_cross", row.media_id, "audio.wav")
            path = crossed if crossed.is_file() else path
        if not path.is_file():
            raise _MissingFilesError(f"the audio {path} is missing: add it or drop the row")
        return str(path)

    def _path(self, row: _Row, *parts: str) -> Path:
        """The path of the parts under the root, refused where a part or a link leads elsewhere."""
        for part in parts:
            if part in (".", "..") or any(character in part for character in "/\\\0"):
                raise DatasetError(f"{row} names the folder {part!r}, which is no plain name: fix its uid or fid")
        path = self.root.joinpath(*parts)
        self._check_inside_root(row, path)
        return path

    def _check_inside_root(self, row: _Row, path: Path) -> None:
        if path in self._inside:
            return
        real_path = path.resolve()
        if not real_path.is_relative_to(self._real_root):
            raise DatasetError(
                f"{row} has {path}, a link to {real_path} outside {self._real_root}: copy the files in, or give the "
                "folder that really holds them as root"
            )
        self._inside.add(path)

    def _numbered_files(self, row: _Row, folder: Path, *, kind: str, num_expected: int | None) -> tuple[str, ...]:
        """The folder's images in the order of their numbers, which must run without a gap from 0 or 1."""
        if folder not in self._numbered:
            paths = _list_images(folder, FRAME_SUFFIXES if kind == "frames" else MASK_SUFFIXES)
            numbered = _by_number(paths, folder=folder, kind=kind)
            _check_no_gap(numbered, folder=folder, kind=kind, num_expected=num_expected)
            for path in paths:
                if path.is_symlink():
                    self._check_inside_root(row, path)
            self._numbered[folder] = tuple(str(numbered[number]) for number in sorted(numbered))
        _check_count(len(self._numbered[folder]), folder=folder, kind=kind, num_expected=num_expected)
        return self._numbered[folder]


def _list_images(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    if not folder.is_dir():
        return []
    # Names with a leading dot are a file manager's own, such as "._0.jpg".
    return [path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith(".")]


def _by_number(paths: Sequence[Path], *, folder: Path, kind: str) -> dict[int, Path]:
    """Paths by the number that is their name ("3.jpg", "00003.png")."""
    if not paths:
        raise _MissingFilesError(f"{folder} holds no {kind}: add them or drop the row")
    numbered: dict[int, Path] = {}
    for path in paths:
        if not path.stem.isdecimal():
            raise _MissingFilesError(f"{path} is among the {kind} but its name is no number: rename or remove it")
        other = numbered.setdefault(int(path.stem), path)
        if other is not path:
            raise _MissingFilesError(f"{other} and {path} are one frame's {kind}: remove one of them")
    return numbered


def _check_no_gap(numbered: Mapping[int, Path], *, folder: Path, kind: str, num_expected: int | None) -> None:
    """Check that the numbers run 0, 1, 2 ... or 1, 2, 3 ... (other benchmarks' style), as many as expected."""
    last = max(numbered)
    starts_at_one = 0 not in numbered and (num_expected is None or last >= num_expected)
    first = 1 if starts_at_one else 0
    length = num_expected or last + 1 - first
    missing = next((number for number in range(first, first + length) if number not in numbered), None)
    if missing is not None:
        example = numbered[last]
        file = example.with_stem(str(missing).zfill(len(example.stem)))
        raise _MissingFilesError(
            f"{folder} has {len(numbered)} {kind}, expected {length}: {file} is missing, add it or drop the row"
        )


def _check_count(count: int, *, folder: Path, kind: str, num_expected: int | None) -> None:
    if num_expected is not None and count != num_expected:
        raise _MissingFilesError(
            f"{folder} has {count} {kind}, expected {num_expected}: remove the surplus, or load with another num_frames"
        )


def _describe_problems(problems: Mapping[str, Sequence[_Row]], *, num_rows: int, split: str) -> str:
    num_bad = sum(len(rows) for rows in problems.values())
    lines = [f"{num_bad} of the {num_rows} rows of split {split!r} lack files:"]
    for trouble, rows in list(problems.items())[:NUM_PROBLEMS_SHOWN]:
        others = f" [{len(rows) - 1} other row(s) have the same trouble]" if len(rows) > 1 else ""
        lines.append(f"  {rows[0]}: {trouble}{others}")
    if len(problems) > NUM_PROBLEMS_SHOWN:
        lines.append(f"  ... and {len(problems) - NUM_PROBLEMS_SHOWN} further trouble(s)")
    return "\n".join(lines)


def _read_chains(path: Path, rows: Sequence[_Row]) -> dict[int, dict[str, Any]]:
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


def _row_of_chain(record: Mapping[str, Any], rows: Sequence[_Row]) -> int:
    """The row that a record belongs to, by uid and row; never by position (the authors' release did, and mixed up)."""
    uid, row = record["uid"], record["row"]
    if not 0 <= row < len(rows) or rows[row].uid != uid:
        raise DatasetError(f"{METADATA_FILE} has no uid {uid!r} at row {row!r}: rebuild the chains for this file")
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
