"""Find all problems of a folder in Ref-AVSBench's layout: each kind with its count, its first place and an advice.

`load_ref_avs` and `load_clip` stop at the first row that cannot be read, possibly hours into a run. `examine` checks
all rows and files beforehand, by the same functions and limits, and continues after a problem.
`aurora-rl doctor` is its command line.

    report = examine("data/ref_avs", num_workers=8)
    report.has_errors, [(problem.kind, problem.count) for problem in report.problems]

Files are untrusted: files of rows whose names leave the root are never opened, headers are checked before anything is
decoded, and each worker has one clip at a time, with one decoded image.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from aurora_rl.data.containers import MediaError, check_clip_pixels
from aurora_rl.data.control_texts import find_control_token
from aurora_rl.data.files import (
    BenchmarkFiles,
    DatasetError,
    MissingFilesError,
    NoFilesError,
    UnsafePathError,
    check_plain_names,
)
from aurora_rl.data.media import (
    check_audio,
    read_frame_size,
    read_frames,
    read_mask_size,
    read_masks,
)
from aurora_rl.data.ref_avs import (
    METADATA_FILE,
    NULL_PREFIXES,
    UNFINISHED_SPLIT,
    MetadataRow,
    find_audio,
    find_frames,
    find_masks,
    read_metadata,
)


@dataclasses.dataclass(frozen=True)
class ProblemKind:
    """A kind of problem.

    Attributes:
        title: name of the problem, for people.
        unit: unit of the count.
        advice: action that the user should take.
        is_error: whether training or evaluation would stop or be wrong; otherwise it is a note on a property of the
            official file.
    """

    title: str
    unit: str
    advice: str
    is_error: bool = True


#: The kinds by their names in JSON, in the order of a report.
PROBLEM_KINDS = {
    "malformed_rows": ProblemKind("malformed rows", "row", "fix or drop them"),
    "control_tokens": ProblemKind(
        "references or categories that spell a control token of a model",
        "row",
        "write them in other words: a model that has the token refuses the row",
    ),
    "unsafe_names": ProblemKind("names that leave the root", "row", "fix uid or fid; the rows' files were not opened"),
    "outside_links": ProblemKind("links that leave the root", "clip", "copy the files in; they were not opened"),
    "null_media_paths": ProblemKind(
        "null rows without media of their own",
        "clip",
        "unpack the null clips into media/null_...; the clip without the prefix is not theirs",
    ),
    "missing_frames": ProblemKind("frames missing", "clip", "add them or drop the clip's rows"),
    "frame_counts": ProblemKind("frames other than expected in number", "clip", "restore them, or give --num_frames"),
    "unreadable_frames": ProblemKind("frames unreadable", "clip", "extract them again or drop the clip's rows"),
    "frame_sizes": ProblemKind("frames of different sizes", "clip", "save all frames of a clip at one size"),
    "missing_audio": ProblemKind("audio missing", "clip", "add it or drop the clip's rows"),
    "unreadable_audio": ProblemKind("audio unreadable", "clip", "extract it again or drop the clip's rows"),
    "missing_masks": ProblemKind("masks missing", "mask folder", "add them or drop the rows"),
    "mask_counts": ProblemKind(
        "masks other than expected in number", "mask folder", "save one for each frame, or give --num_frames"
    ),
    "unreadable_masks": ProblemKind("masks unreadable", "mask folder", "restore them or drop the rows"),
    "mask_sizes": ProblemKind("masks of another size than the frames", "mask folder", "save them at the frames' size"),
    "null_truths": ProblemKind(
        "null rows whose masks mark something", "mask folder", "empty the masks, or give the row its category"
    ),
    "odd_audio": ProblemKind(
        "sounds that are not heard as they are stored", "clip", "listen to them; they are read as told", is_error=False
    ),
    "todo_rows": ProblemKind(
        f"rows of split {UNFINISHED_SPLIT}", "row", "nothing: loading leaves them out", is_error=False
    ),
    "duplicate_rows": ProblemKind(
        "rows given twice in a split", "row", "keep them to compare with published scores", is_error=False
    ),
    "repeated_uids": ProblemKind("uids of several rows", "uid", "key predictions by uid and row", is_error=False),
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """All problems of one kind.

    Attributes:
        kind: name of the kind, a key of `PROBLEM_KINDS` or `clips_doctor.CLIP_PROBLEMS`.
        count: number of problems, in the kind's unit.
        first: text of the first problem in the order of the table.
        about: title, unit and advice of the kind.
    """

    kind: str
    count: int
    first: str
    about: ProblemKind

    @property
    def is_error(self) -> bool:
        return self.about.is_error

    def to_dict(self) -> dict[str, Any]:
        """Return the problem as JSON, with severity, unit and advice of its kind."""
        return {
            "kind": self.kind,
            "severity": "error" if self.is_error else "note",
            "count": self.count,
            "unit": self.about.unit,
            "first": self.first,
            "advice": self.about.advice,
        }


@dataclasses.dataclass(frozen=True)
class SplitFacts:
    """Size of a split."""

    rows: int
    media_ids: int
    null_rows: int


@dataclasses.dataclass(frozen=True)
class MetadataFacts:
    """Counts of metadata.csv, all splits together; only `rows` includes malformed rows.

    Attributes:
        rows: rows without the header.
        todo_rows: rows of the unfinished split.
        null_rows: rows whose reference points at nothing.
        duplicate_rows: rows with uid, fid and reference of an earlier row of their split.
        repeated_uids: uids of more than one row.
        null_sentences: distinct references of the null rows.
        splits: size of each split, in the order of the file.
    """

    rows: int
    todo_rows: int
    null_rows: int
    duplicate_rows: int
    repeated_uids: int
    null_sentences: int
    splits: dict[str, SplitFacts]


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of `examine`.

    Attributes:
        facts: counts of the whole metadata.csv.
        problems: problems, one for each kind that occurs, in the order of `PROBLEM_KINDS`.
        clips_checked: number of checked media folders; None where only metadata.csv was checked.
    """

    facts: MetadataFacts
    problems: tuple[Problem, ...]
    clips_checked: int | None = None

    @property
    def has_errors(self) -> bool:
        """Whether there are errors; notes do not count."""
        return any(problem.is_error for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON: the keys of `MetadataFacts`, then `problems` and `clips_checked`."""
        problems = [problem.to_dict() for problem in self.problems]
        return {**dataclasses.asdict(self.facts), "problems": problems, "clips_checked": self.clips_checked}


AnyRow = TypeVar("AnyRow")
AnyFinding = TypeVar("AnyFinding")


@dataclasses.dataclass(frozen=True)
class _Finding:
    """One problem at one place."""

    kind: str
    text: str


def examine_metadata(path: str | os.PathLike[str]) -> Report:
    """Check a metadata.csv alone.

    Args:
        path: the CSV file, or the folder that holds metadata.csv.

    Raises:
        DatasetError: if the file is missing, is no CSV file in UTF-8, or lacks a column or any row.
    """
    path = Path(path)
    rows, malformed = _read_rows(path / METADATA_FILE if path.is_dir() else path)
    return _report(rows, malformed, findings=())


def examine(
    root: str | os.PathLike[str],
    *,
    splits: Sequence[str] | None = None,
    num_frames: int | None = 10,
    num_workers: int = 1,
) -> Report:
    """Check metadata.csv, and every file that its rows need.

    Args:
        root: folder of the benchmark, which holds metadata.csv, media/ and gt_mask/.
        splits: splits whose files are checked; None for all but the unfinished one. All of metadata.csv is checked.
        num_frames: number of frames and masks that each clip must have; None for any number, the same for both.
        num_workers: number of threads, each with one clip; the report does not depend on it.

    Raises:
        DatasetError: if metadata.csv cannot be read or lacks a split.
        ValueError: if a number is not positive.
    """
    if num_workers < 1 or (num_frames is not None and num_frames < 1):
        raise ValueError(f"num_workers={num_workers}, num_frames={num_frames}: expected positive numbers")
    root = Path(root)
    rows, malformed = _read_rows(root / METADATA_FILE)
    known = {row.split for row in rows} - {UNFINISHED_SPLIT}
    unknown = [split for split in splits or () if split not in known]
    if unknown:
        raise DatasetError(f"{METADATA_FILE} has no split(s) {unknown} to check: expected some of {sorted(known)}")
    chosen = known if splits is None else set(splits)
    clips = _group_by_clip([row for row in rows if row.split in chosen])
    findings = check_clips(clips, partial(_check_clip, root, num_frames=num_frames), num_workers=num_workers)
    return dataclasses.replace(_report(rows, malformed, findings=findings), clips_checked=len(clips))


def _read_rows(path: Path) -> tuple[list[MetadataRow], list[str]]:
    malformed: dict[int, str] = {}
    rows = read_metadata(path, malformed=malformed)
    if not rows and not malformed:
        raise DatasetError(f"{path} has no rows below its header: is it the whole file?")
    return rows, [malformed[row] for row in sorted(malformed)]


def _report(rows: Sequence[MetadataRow], malformed: Sequence[str], *, findings: Iterable[_Finding]) -> Report:
    """Count the findings by kind, those of the metadata first; each kind keeps only its first finding."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    in_metadata = [_Finding("malformed_rows", text) for text in malformed]
    in_metadata += [finding for find in METADATA_CHECKS for finding in find(rows)]
    for source in (in_metadata, findings):
        for finding in source:
            counts[finding.kind] += 1
            first.setdefault(finding.kind, finding.text)
    found = [kind for kind in PROBLEM_KINDS if counts[kind]]
    problems = tuple(Problem(kind, counts[kind], first[kind], PROBLEM_KINDS[kind]) for kind in found)
    null_rows = [row for row in rows if row.is_null]
    by_split: dict[str, list[MetadataRow]] = {}
    for row in rows:
        by_split.setdefault(row.split, []).append(row)
    facts = MetadataFacts(
        rows=len(rows) + len(malformed),
        todo_rows=counts["todo_rows"],
        null_rows=len(null_rows),
        duplicate_rows=counts["duplicate_rows"],
        repeated_uids=counts["repeated_uids"],
        null_sentences=len({row.reference for row in null_rows}),
        splits={
            split: SplitFacts(len(of), len({row.media_id for row in of}), sum(row.is_null for row in of))
            for split, of in by_split.items()
        },
    )
    return Report(facts, problems)


def _find_unsafe_names(rows: Iterable[MetadataRow]) -> Iterator[_Finding]:
    for row in rows:
        try:
            _check_names(row)
        except UnsafePathError as error:
            yield _Finding("unsafe_names", str(error))


def _check_names(row: MetadataRow) -> None:
    check_plain_names(row, row.media_id, f"fid_{row.fid}")


def _find_todo_rows(rows: Iterable[MetadataRow]) -> Iterator[_Finding]:
    for row in rows:
        if row.split == UNFINISHED_SPLIT:
            yield _Finding("todo_rows", str(row))


def _find_duplicate_rows(rows: Iterable[MetadataRow]) -> Iterator[_Finding]:
    first: dict[tuple[str, str, str, str], MetadataRow] = {}
    for row in rows:
        other = first.setdefault((row.split, row.uid, row.fid, row.reference), row)
        if other is not row:
            yield _Finding("duplicate_rows", f"{row} repeats row {other.row} in split {row.split!r}")


def _find_repeated_uids(rows: Iterable[MetadataRow]) -> Iterator[_Finding]:
    by_uid: dict[str, list[MetadataRow]] = {}
    for row in rows:
        by_uid.setdefault(row.uid, []).append(row)
    for uid, members in by_uid.items():
        if len(members) > 1:
            numbers = ", ".join(str(row.row) for row in members[:5])
            yield _Finding("repeated_uids", f"uid {uid!r} stands in {len(members)} rows ({numbers})")


def _find_control_tokens(rows: Iterable[MetadataRow]) -> Iterator[_Finding]:
    for row in rows:
        if found := find_control_token([row.reference], completions=[row.category]):
            yield _Finding("control_tokens", f"{row} holds {found}")


METADATA_CHECKS: tuple[Callable[[Iterable[MetadataRow]], Iterator[_Finding]], ...] = (
    _find_control_tokens,
    _find_unsafe_names,
    _find_todo_rows,
    _find_duplicate_rows,
    _find_repeated_uids,
)


def _group_by_clip(rows: Iterable[MetadataRow]) -> list[list[MetadataRow]]:
    """Group the rows by media folder, in the file's order, without rows that have unsafe names."""
    clips: dict[str, list[MetadataRow]] = {}
    for row in rows:
        try:
            _check_names(row)
        except UnsafePathError:
            continue
        clips.setdefault(row.media_id, []).append(row)
    return list(clips.values())


def check_clips(
    clips: Sequence[Sequence[AnyRow]], check: Callable[[Sequence[AnyRow]], list[AnyFinding]], *, num_workers: int
) -> Iterator[AnyFinding]:
    """Yield the findings in the order of the clips. Threads are enough: decoding does not hold Python's lock."""
    with ThreadPoolExecutor(num_workers) as executor:
        progress = tqdm(executor.map(check, clips), total=len(clips), unit="clip", disable=None)  # on a terminal only
        for findings in progress:
            yield from findings


def _check_clip(root: Path, rows: Sequence[MetadataRow], *, num_frames: int | None) -> list[_Finding]:
    """Find the problems of a media folder and its rows' mask folders, up to the first link that leaves the root."""
    files = BenchmarkFiles(root)  # a fresh one for each clip, so that its memory does not grow
    findings: list[_Finding] = []
    try:
        for finding in _find_in_clip(files, rows, num_frames=num_frames):
            findings.append(finding)
    except UnsafePathError as error:
        findings.append(_Finding("outside_links", str(error)))
    return findings


def _find_in_clip(files: BenchmarkFiles, rows: Sequence[MetadataRow], *, num_frames: int | None) -> Iterator[_Finding]:
    row, frames = rows[0], _Images()
    if _lacks_own_media(files, row):
        unprefixed = _without_null_prefix(row.media_id)
        text = f"{row}: there is no media/{row.media_id}, only media/{unprefixed}"
        yield _Finding("null_media_paths", text)
    else:
        paths, problems = _list_files("frames", row, partial(find_frames, files, row, num_frames=num_frames))
        frames = _check_images("frames", row, paths)
        yield from (*problems, *frames.findings)
        yield from _find_in_audio(files, row)
    num_masks = frames.number or num_frames
    by_fid: dict[str, list[MetadataRow]] = {}
    for row in rows:
        by_fid.setdefault(row.fid, []).append(row)
    for sharing in by_fid.values():
        yield from _find_in_masks(files, sharing, num_masks=num_masks, frame_size=frames.size)


def _lacks_own_media(files: BenchmarkFiles, row: MetadataRow) -> bool:
    """Tell whether a null clip's own folder is missing and the folder of its original clip is there."""
    unprefixed = _without_null_prefix(row.media_id)
    if not row.is_null or not unprefixed or unprefixed == row.media_id:
        return False
    own, other = files.path(row, "media", row.media_id), files.path(row, "media", unprefixed)
    return not os.path.isdir(own) and os.path.isdir(other)


def _without_null_prefix(media_id: str) -> str:
    prefix = next((prefix for prefix in NULL_PREFIXES if media_id.startswith(prefix)), "")
    return media_id.removeprefix(prefix)


def _find_in_audio(files: BenchmarkFiles, row: MetadataRow) -> Iterator[_Finding]:
    paths, problems = _list_files("audio", row, lambda: (find_audio(files, row),))
    yield from problems
    for path in paths:
        try:
            notes = check_audio(path)
        except MediaError as error:
            yield _Finding("unreadable_audio", f"{row}: {error}")
            continue
        if notes:
            yield _Finding("odd_audio", f"{row}: {path}: {'; '.join(notes)}")


def _find_in_masks(
    files: BenchmarkFiles,
    rows: Sequence[MetadataRow],
    *,
    num_masks: int | None,
    frame_size: tuple[int, int] | None,
) -> Iterator[_Finding]:
    """Find the problems of one mask folder, which all the rows share."""
    strictest = next((row for row in rows if not row.is_null), rows[0])  # a null row need not have masks
    paths, problems = _list_files("masks", strictest, partial(find_masks, files, strictest, num_frames=num_masks))
    masks = _check_images("masks", strictest, paths, size=frame_size)
    yield from (*problems, *masks.findings)
    null_row = next((row for row in rows if row.is_null), None)
    if null_row is not None and masks.first_marked is not None:
        text = f"{null_row} is a null reference, but its mask {masks.first_marked} marks pixels"
        yield _Finding("null_truths", text)


#: The readers of headers and of pixels, by the kind of image.
IMAGE_READERS = {"frames": (read_frame_size, read_frames), "masks": (read_mask_size, read_masks)}


@dataclasses.dataclass(frozen=True)
class _Images:
    """The checked images of a folder of frames or masks.

    Attributes:
        number: number of files.
        size: width and height that all should have, in pixels; None where no file could be read.
        first_marked: path of the first file with a pixel other than 0.
        findings: findings, at most one of each kind, which names the first such file.
    """

    number: int = 0
    size: tuple[int, int] | None = None
    first_marked: str | None = None
    findings: tuple[_Finding, ...] = ()


def _list_files(
    name: str, row: MetadataRow, find: Callable[[], tuple[str, ...]]
) -> tuple[tuple[str, ...], tuple[_Finding, ...]]:
    """List a row's frames, masks or audio, or the problem why they cannot be listed."""
    try:
        return find(), ()
    except NoFilesError as error:
        return (), (_Finding(f"missing_{name}", f"{row}: {error}"),)
    except MissingFilesError as error:
        return (), (_Finding(f"{name.removesuffix('s')}_counts", f"{row}: {error}"),)
    except OSError as error:  # no permission, a broken disk
        return (), (_Finding(f"unreadable_{name}", f"{row}: {error}"),)


def _check_images(name: str, row: MetadataRow, paths: Sequence[str], *, size: tuple[int, int] | None = None) -> _Images:
    """Check frames or masks: first all headers, then each image is decoded and dropped.

    All images must have this `size`, or that of the first readable one where it is None.
    """
    read_size, read = IMAGE_READERS[name]
    findings: dict[str, _Finding] = {}
    marked: list[str] = []
    good: list[str] = []  # files whose header is sound
    num_pixels = 0

    def add(kind: str, text: object) -> None:
        findings.setdefault(kind, _Finding(kind, f"{row}: {text}"))

    for path in paths:
        try:
            width, height = read_size(path)
            num_pixels += width * height
            check_clip_pixels(num_pixels, path)
        except MediaError as error:
            add(f"unreadable_{name}", error)
            continue
        good.append(path)
        size = size or (width, height)
        if (width, height) != size:
            text = f"{path} has {width}x{height} pixels, expected {size[0]}x{size[1]} as the clip's first frame"
            add(f"{name.removesuffix('s')}_sizes", text)
    for path in good:
        try:
            if read([path]).any():
                marked.append(path)
        except MediaError as error:
            add(f"unreadable_{name}", error)
    return _Images(len(paths), size, marked[0] if marked else None, tuple(findings.values()))
