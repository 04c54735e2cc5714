"""OmniAVS as a list of samples.

One row of meta_expressions_train.jsonl, and its video in video_dict.json (shortened):

    {"exp_id": 7, "video_name": "abc", "expr": "the man who laughs", "obj_id": ["1", "2"], "expr_type": "text"}
    {"abc": {"file_name": ["0.jpg", ...], "duration": 9.5, "mask_dict": {"1": [{"size": [H, W], "counts": ...}, null]}}}

    images/<video>/<file name>    audios/<video>.mp3

A reference may mean several objects, whose masks are joined; a reference to none has an empty `obj_id` and is null. An
object out of view has null instead of run lengths. The masks are written once as PNG files into `mask_cache` (`masks`
says why).

References of other types than text come with a recording or a picture (`omni_references`). They are left out, and the
log says how many, unless all are asked for: `models.reference_media` tells how a model is given the files, and a chat
endpoint is sent them.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.data.chains import ChainFile, add_chains
from aurora_rl.data.containers import MediaError
from aurora_rl.data.draw import evenly_spaced
from aurora_rl.data.files import BenchmarkFiles, DatasetError, MissingFilesError, OnMissing, Row, collect_samples
from aurora_rl.data.masks import write_mask
from aurora_rl.data.media import read_frame_size
from aurora_rl.data.omni_references import TEXT_TYPE, OmniReference, read_reference
from aurora_rl.data.sample import NULL_CATEGORY, AVSample
from aurora_rl.files.plain import parse_json

logger = logging.getLogger(__name__)

VIDEO_FILE = "video_dict.json"
DESCRIBED_CATEGORY = "described object"  # the benchmark names no categories
ROW_KEYS: dict[str, type | tuple[type, ...]] = {
    "exp_id": (str, int),
    "video_name": str,
    "expr": str,
    "obj_id": list,
    "expr_type": str,
}


@dataclasses.dataclass(frozen=True)
class _Row(Row):
    """One line of a file of expressions."""

    video: str
    object_ids: tuple[str, ...]
    reference_type: str
    reference_files: tuple[str, ...] = ()


def load_omni_avs(
    root: str | os.PathLike[str],
    split: str,
    *,
    mask_cache: str | os.PathLike[str],
    num_frames: int | None = 10,
    chains: ChainFile | None = None,
    on_missing: OnMissing = "error",
    all_types: bool = False,
) -> list[AVSample]:
    """List the samples of one split, and write their masks.

    Args:
        root: folder that holds meta_expressions_<split>.jsonl, video_dict.json, images/ and audios/.
        split: train or test.
        mask_cache: folder for the masks as PNG files; made and filled as needed, and shared by the splits.
        num_frames: largest number of frames of a video, evenly spaced from its first to its last, as the owners train;
            None for all frames, as the owners score.
        chains: file of chains of thought (`tasks.reference_segmentation.chain_file`), keyed by uid
            (`<video_name>_<exp_id>`) and row.
        on_missing: "error", or "drop" to skip rows with missing files and log how many.
        all_types: whether references that are spoken, or point to a sound or a picture, are listed beside text; their
            files are `AVSample.reference_media`.

    Returns:
        The samples in the file's order.

    Raises:
        DatasetError: if a file is malformed, names an unknown video or object, or lacks frames' masks; if files are
            missing or lie outside the root; or if a chain of thought fits no row.
    """
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}: expected a positive number, or None for all")
    root = Path(root)
    path = root / f"meta_expressions_{split}.jsonl"
    rows = _read_rows(path, split, all_types=all_types)
    chosen = rows if all_types else _text_rows(rows, path)
    build = functools.partial(
        _build_sample,
        BenchmarkFiles(root),
        videos=_read_videos(root / VIDEO_FILE),
        mask_cache=Path(mask_cache),
        num_frames=num_frames,
    )
    return add_chains(collect_samples(chosen, build, split=split, on_missing=on_missing), chains, rows)


def _read_rows(path: Path, split: str, *, all_types: bool) -> list[_Row]:
    if not path.is_file():
        raise DatasetError(
            f"there is no {path}: root must hold meta_expressions_<split>.jsonl, {VIDEO_FILE}, images/ and audios/, "
            f"and the split (here {split!r}) be train or test"
        )
    try:
        lines = path.read_bytes().decode().split("\n")
    except UnicodeDecodeError as error:
        raise DatasetError(f"cannot read {path}: {error}; expected JSON lines in UTF-8") from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    return [
        _parse_row(line, row=row, split=split, place=f"{path}:{number}", all_types=all_types)
        for row, (number, line) in enumerate(numbered)
    ]


def _parse_row(line: str, *, row: int, split: str, place: str, all_types: bool) -> _Row:
    try:
        record = parse_json(line)
    except ValueError as error:
        raise DatasetError(f"{place} is no JSON: {error}; fix or drop the line") from error
    wrong = [
        name
        for name, kind in ROW_KEYS.items()
        if not isinstance(record, dict) or not isinstance(record.get(name), kind)
    ]
    if wrong:
        raise DatasetError(f"{place} lacks {wrong} or has them of another type: expected {sorted(ROW_KEYS)}")
    object_ids = tuple(str(object_id) for object_id in record["obj_id"])
    is_read = all_types or record["expr_type"] == TEXT_TYPE  # others are counted, and left out
    reference = read_reference(record, place) if is_read else OmniReference(record["expr"])
    return _Row(
        uid=f"{record['video_name']}_{record['exp_id']}",
        row=row,
        split=split,
        category=DESCRIBED_CATEGORY if object_ids else NULL_CATEGORY,
        reference=reference.words,
        origin=place.rpartition("/")[2],
        video=record["video_name"],
        object_ids=object_ids,
        reference_type=record["expr_type"],
        reference_files=reference.files,
    )


def _text_rows(rows: Sequence[_Row], path: Path) -> list[_Row]:
    kept = [row for row in rows if row.reference_type == TEXT_TYPE]
    others = Counter(row.reference_type for row in rows if row.reference_type != TEXT_TYPE)
    if others:
        logger.warning("%s: left out references that are more than text: %s", path, dict(sorted(others.items())))
    if not kept:
        raise DatasetError(f"{path} has no reference of expr_type {TEXT_TYPE!r}, only {dict(sorted(others.items()))}")
    return kept


def _read_videos(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DatasetError(f"there is no {path}: it holds the masks of all videos, get it beside the expressions")
    try:
        videos = parse_json(path.read_bytes())
    except ValueError as error:
        raise DatasetError(f"cannot read {path}: {error}; expected JSON, get the file again") from error
    if not isinstance(videos, dict):
        raise DatasetError(f"{path} holds a {type(videos).__name__}: expected an object keyed by video")
    return videos


def _build_sample(
    files: BenchmarkFiles, row: _Row, *, videos: Mapping[str, Any], mask_cache: Path, num_frames: int | None
) -> AVSample:
    names, duration = _video_of(row, videos)
    kept = evenly_spaced(len(names), num_frames)
    paths = [files.path(row, "images", row.video, names[index]) for index in kept]
    for path in paths:
        if not path.is_file():
            raise MissingFilesError(f"the frame {path} is missing: add it or drop the row")
    return row.to_sample(
        media_id=row.video,
        fps=_frame_rate(kept, num_frames=len(names), duration=duration),
        frame_paths=tuple(str(path) for path in paths),
        audio_path=files.audio(row, "audios", f"{row.video}.mp3"),
        mask_paths=_mask_paths(row, videos[row.video], names, kept, size=_size_of(paths[0]), mask_cache=mask_cache),
        reference_type=row.reference_type,
        reference_media=tuple(str(_reference_file(files, row, name)) for name in row.reference_files),
    )


def _reference_file(files: BenchmarkFiles, row: _Row, name: str) -> Path:
    path = files.path(row, *name.split("/"))
    if not path.is_file():
        raise MissingFilesError(f"the reference's file {path} is missing: add it or drop the row")
    return path


def _video_of(row: _Row, videos: Mapping[str, Any]) -> tuple[list[str], float]:
    """Return the file names of the video's frames in time order, and its duration in seconds."""
    if row.video not in videos:
        raise DatasetError(f"{row} names the video {row.video!r}, which is not in {VIDEO_FILE}: drop the row")
    video = videos[row.video]
    names, duration = video.get("file_name"), video.get("duration")
    if not names or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DatasetError(
            f"{row}: {VIDEO_FILE} has no file_name of the video {row.video!r}: expected a list of frames"
        )
    if isinstance(duration, bool) or not isinstance(duration, (int, float)) or not 0 < duration < float("inf"):
        raise DatasetError(f"{row}: {VIDEO_FILE} has the duration {duration!r} of {row.video!r}: expected seconds")
    return names, float(duration)


def _frame_rate(kept: Sequence[int], *, num_frames: int, duration: float) -> float:
    """Compute the frame rate of the kept frames: 4 of 10 frames over 5 s are 2 / 3 a second."""
    rate = num_frames / duration
    return rate * (len(kept) - 1) / (kept[-1] - kept[0]) if len(kept) > 1 else rate


def _size_of(path: Path) -> tuple[int, int]:
    """Read (height, width) from the image's header within limits, since masks of this size are allocated."""
    try:
        width, height = read_frame_size(path)
    except MediaError as error:
        raise MissingFilesError(str(error)) from error
    return height, width


def _mask_paths(
    row: _Row,
    video: Mapping[str, Any],
    names: Sequence[str],
    kept: Sequence[int],
    *,
    size: tuple[int, int],
    mask_cache: Path,
) -> tuple[str, ...]:
    """Write the kept frames' masks and return their paths; none for a null reference."""
    objects = [_object_masks(row, video, object_id, num_frames=len(names)) for object_id in row.object_ids]
    if not objects:
        return ()
    try:
        return tuple(
            write_mask([masks[index] for masks in objects if masks[index] is not None], size, mask_cache)
            for index in kept
        )
    except DatasetError as error:
        raise DatasetError(f"{row}: {VIDEO_FILE}, video {row.video!r}: {error}") from error


def _object_masks(row: _Row, video: Mapping[str, Any], object_id: str, *, num_frames: int) -> list[Any]:
    """Return an object's run lengths, or None, for each of the video's frames."""
    objects = video.get("mask_dict") or {}
    if object_id not in objects:
        raise DatasetError(
            f"{row} means the object {object_id!r}, but {VIDEO_FILE} has only {sorted(objects)} of the video "
            f"{row.video!r}: fix obj_id or drop the row"
        )
    masks = objects[object_id]
    if not isinstance(masks, list) or len(masks) != num_frames:
        raise DatasetError(
            f"{row}: {VIDEO_FILE} needs one mask or null for each of the {num_frames} frames of the video "
            f"{row.video!r}, not {len(masks) if isinstance(masks, list) else type(masks).__name__} for the object "
            f"{object_id!r}: add the missing ones or drop the row"
        )
    return masks
