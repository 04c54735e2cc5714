"""Find all problems of a manifest of own clips: each kind with the number of its rows, its first row and an advice.

`load_clips` and `load_clip` stop at the first row that cannot be read, possibly hours into a run. `examine_clips`
checks all rows beforehand by the same functions: it finds the files, decodes the sampled frames and the sounds, and
reads the masks. `aurora-rl doctor clips.csv` is its command line.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aurora_rl.data.clip_files import ClipBuilder, ClipPaths
from aurora_rl.data.clip_sources import is_table
from aurora_rl.data.clip_tables import read_table_rows
from aurora_rl.data.containers import FilePath, MediaError
from aurora_rl.data.control_texts import find_control_token
from aurora_rl.data.doctor import Problem, ProblemKind, SplitFacts, check_clips
from aurora_rl.data.files import DatasetError, MissingFilesError, UnsafePathError
from aurora_rl.data.manifest import SUFFIXES, find_manifest, read_manifest
from aurora_rl.data.manifest_rows import ManifestRow
from aurora_rl.data.media import check_audio, load_clip, read_clip_frames, read_clip_sound
from aurora_rl.data.sample import AVSample

#: The kinds by their names in JSON, in the order of a report.
CLIP_PROBLEMS = {
    "malformed_rows": ProblemKind("malformed rows", "row", "fix or drop them"),
    "control_tokens": ProblemKind(
        "texts that spell a control token of a model",
        "row",
        "write them in other words: a model that has the token refuses the row",
    ),
    "unsafe_paths": ProblemKind(
        "paths that leave the manifest's folder", "row", "copy the files in; they were not opened"
    ),
    "missing_files": ProblemKind("files missing", "row", "add them or drop the rows"),
    "unreadable_pictures": ProblemKind("videos or frames unreadable", "row", "replace or re-encode them"),
    "unreadable_audio": ProblemKind("sounds unreadable", "row", "replace them, or leave the column audio empty"),
    "unusable_masks": ProblemKind("masks that cannot be used", "row", "fix them as told, or empty the column masks"),
    "unlabelled_rows": ProblemKind(
        "rows without masks", "row", "add masks, or train and score with skip_unlabelled: true", is_error=False
    ),
    "partial_masks": ProblemKind(
        "rows with masks on some sampled frames only", "row", "nothing: other frames do not count", is_error=False
    ),
    "odd_audio": ProblemKind(
        "sounds that are not heard as they are stored", "row", "listen to them; they are read as told", is_error=False
    ),
}
_Finding = tuple[str, str]  # kind and text


@dataclasses.dataclass(frozen=True)
class ClipsReport:
    """The result of `examine_clips`.

    Attributes:
        rows: rows of the manifest, malformed ones included.
        null_rows: rows whose reference points at nothing.
        unlabelled_rows: rows whose true masks are not known.
        splits: size of each split, in the order of the manifest.
        problems: problems, one for each kind that occurs, in the order of `CLIP_PROBLEMS`.
        clips_checked: number of clips whose files were checked.
    """

    rows: int
    null_rows: int
    unlabelled_rows: int
    splits: dict[str, SplitFacts]
    problems: tuple[Problem, ...]
    clips_checked: int

    @property
    def has_errors(self) -> bool:
        """Whether there are errors; notes do not count."""
        return any(problem.is_error for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {**dataclasses.asdict(self), "problems": [problem.to_dict() for problem in self.problems]}


def examine_clips(
    root: FilePath,
    *,
    splits: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    fps: float = 1.0,
    num_frames: int | None = 10,
    num_workers: int = 1,
) -> ClipsReport:
    """Check a manifest, and every file that its rows need.

    Args:
        root: the manifest or a folder that holds one, or a data set of `datasets` (`clip_tables`).
        splits: splits whose files are checked; None for all. All rows of the manifest are checked.
        columns: the manifest's own name of a column by the name here.
        fps: frames a second that are sampled of a video, unless a row says otherwise.
        num_frames: largest number of frames of a clip; None for all.
        num_workers: number of threads, each with one clip; the report does not depend on it.

    Raises:
        DatasetError: if the manifest cannot be read or lacks a split.
        ValueError: if a number is not positive.
    """
    malformed: dict[int, str] = {}
    path, rows, paths = _read(root, columns, malformed)
    unknown = [split for split in splits or () if split not in {row.split for row in rows}]
    if unknown:
        raise DatasetError(f"{path} has no split(s) {unknown}: expected some of {sorted({row.split for row in rows})}")
    chosen = [row for row in rows if splits is None or row.split in splits]
    clips = _group_by_media(chosen)
    check = functools.partial(_check_clip, ClipBuilder(paths, fps=fps, num_frames=num_frames))
    findings = [("malformed_rows", malformed[number]) for number in sorted(malformed)]
    findings += [finding for row in rows for finding in _check_texts(row)]
    findings += check_clips(clips, check, num_workers=num_workers)
    return ClipsReport(
        rows=len(rows) + len(malformed),
        null_rows=sum(row.is_null for row in rows),
        unlabelled_rows=sum(row.masks is None and not row.is_null for row in rows),
        splits={split: _facts(of) for split, of in _by_split(rows).items()},
        problems=_count(findings),
        clips_checked=len(clips),
    )


def _read(
    root: FilePath, columns: Mapping[str, str] | None, malformed: dict[int, str]
) -> tuple[Path, list[ManifestRow], ClipPaths]:
    """Return the manifest or data set, its rows, and what finds their files."""
    if is_table(root):
        rows, paths = read_table_rows(root, columns=columns, malformed=malformed)
        return Path(root), [row for row in rows if row.row not in malformed], paths
    path = find_manifest(root)
    return path, read_manifest(path, columns=columns, malformed=malformed), ClipPaths(path.parent)


def _group_by_media(rows: Iterable[ManifestRow]) -> list[list[ManifestRow]]:
    """Group the rows that share frames and sound, in the manifest's order."""
    clips: dict[tuple[Any, ...], list[ManifestRow]] = {}
    for row in rows:
        clips.setdefault((row.video, row.frames, row.audio, row.fps), []).append(row)
    return list(clips.values())


def _check_clip(build: ClipBuilder, rows: Sequence[ManifestRow]) -> list[_Finding]:
    """Find the problems of the rows on one clip; frames and sound are read once, and their problems are each row's."""
    findings: list[_Finding] = []
    media: tuple[np.ndarray | None, list[_Finding]] | None = None
    for row in rows:
        sample, problem = _build(build, row)
        if problem is not None:
            findings.append(problem)
        if sample is None:
            continue
        media = media or _check_media(sample)
        frames, problems = media
        findings += [(kind, f"{row}: {text}") for kind, text in problems]
        if frames is not None and problem is None:
            findings += _check_masks(row, sample, frames)
    return findings


def _build(build: ClipBuilder, row: ManifestRow) -> tuple[AVSample | None, _Finding | None]:
    """Make a row's sample; one without masks if these cannot be used, so that its media are checked all the same."""
    try:
        return build(row), None
    except UnsafePathError as error:
        return None, ("unsafe_paths", str(error))
    except MissingFilesError as error:
        kind = "unreadable_pictures" if isinstance(error.__cause__, MediaError) else "missing_files"
        return None, (kind, f"{row}: {error}")
    except DatasetError as error:
        if row.masks is None:
            return None, ("missing_files", str(error))
        sample, problem = _build(build, dataclasses.replace(row, masks=None))
        return sample, problem or ("unusable_masks", str(error))


def _check_media(sample: AVSample) -> tuple[np.ndarray | None, list[_Finding]]:
    """Read a sample's frames, None if they cannot be read, and decode its sound."""
    frames: np.ndarray | None = None
    problems: list[_Finding] = []
    try:
        frames = read_clip_frames(sample)
    except MediaError as error:
        problems.append(("unreadable_pictures", str(error)))
    try:
        is_own_track = sample.audio_path == sample.video_path
        notes = [] if sample.audio_path is None or is_own_track else check_audio(sample.audio_path)
        if is_own_track:
            read_clip_sound(sample)
        problems += [("odd_audio", f"{sample.audio_path}: {'; '.join(notes)}")] if notes else []
    except MediaError as error:
        problems.append(("unreadable_audio", str(error)))
    return frames, problems


def _check_masks(row: ManifestRow, sample: AVSample, frames: np.ndarray) -> Iterator[_Finding]:
    if not sample.has_gt_masks:
        yield "unlabelled_rows", str(row)
        return
    try:
        load_clip(sample, read=lambda _: (frames, None))
    except MediaError as error:
        yield "unusable_masks", str(error)
        return
    if sample.annotated_frames is not None:
        yield "partial_masks", f"{row}: {len(sample.annotated_frames)} of {sample.num_frames} frames"


def _check_texts(row: ManifestRow) -> Iterator[_Finding]:
    asked, learned = (row.reference, *(row.choices or ())), (row.chain, row.category, row.answer)
    if found := find_control_token(asked, completions=learned):
        yield "control_tokens", f"{row} holds {found}"


def _by_split(rows: Iterable[ManifestRow]) -> dict[str, list[ManifestRow]]:
    splits: dict[str, list[ManifestRow]] = {}
    for row in rows:
        splits.setdefault(row.split, []).append(row)
    return splits


def _facts(rows: Sequence[ManifestRow]) -> SplitFacts:
    return SplitFacts(len(rows), len(_group_by_media(rows)), sum(row.is_null for row in rows))


def _count(findings: Iterable[_Finding]) -> tuple[Problem, ...]:
    """Count the findings by kind; each kind keeps only its first finding."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for kind, text in findings:
        counts[kind] += 1
        first.setdefault(kind, text)
    found = [kind for kind in CLIP_PROBLEMS if counts[kind]]
    return tuple(Problem(kind, counts[kind], first[kind], CLIP_PROBLEMS[kind]) for kind in found)


def is_manifest(path: Path) -> bool:
    """Tell whether a path is of own clips (a manifest or a folder with one, tables), not a table of Ref-AVSBench."""
    if is_table(path):
        return True
    try:
        found = find_manifest(path)
    except DatasetError:  # which names what is wrong with a file, or which of several may be meant
        return path.is_file() or (path.is_dir() and any(each.suffix.lower() in SUFFIXES for each in path.iterdir()))
    if found.suffix.lower() != ".csv":
        return True
    with found.open("rb") as file:
        header = file.readline(4096).removeprefix(b"\xef\xbb\xbf")
    return not header.startswith((b"vid,", b'"vid"'))
