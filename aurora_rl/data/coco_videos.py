"""A COCO file of still pictures or of videos (as YouTube-VIS has them) as a list of samples, for `aurora-rl convert`.

Of still pictures, `images` and `annotations` with `image_id`: a row for each picture and category, whose masks are
joined. Of videos, `videos` with `file_names` and `annotations` with `video_id` and `segmentations`, null where an
object is out of view: a row for each object. The sentence is the annotation's `expression` or `caption`, else its
category. Masks of a video file, whose images have a `time`, as `aurora-rl segment` writes them: a row a category.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.data.clip_files import ClipBuilder, ClipPaths
from aurora_rl.data.containers import FilePath, MediaError
from aurora_rl.data.files import DatasetError, MissingFilesError, Row, collect_samples
from aurora_rl.data.manifest_rows import read_row
from aurora_rl.data.mask_sources import category_names, run_lengths_of
from aurora_rl.data.masks import write_mask
from aurora_rl.data.media import read_frame_size
from aurora_rl.data.sample import AVSample
from aurora_rl.files.plain import NotPlainFileError, check_plain_file, parse_json

MAX_BYTES = 2**30
SENTENCES = ("expression", "caption", "reference")
FPS = 1.0


@dataclasses.dataclass(frozen=True)
class _CocoRow(Row):
    """A row: the pictures of one clip, and for each of them the annotations of one object or category.

    Attributes:
        files: paths of the pictures as the file names them.
        masks: annotations of each picture, none for an empty mask.
        clip: id of the picture or video.
    """

    files: tuple[str, ...] = ()
    masks: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    clip: str = ""


def load_coco(
    file: FilePath, split: str, *, mask_cache: FilePath, frames: FilePath | None = None, fps: float = FPS
) -> list[AVSample]:
    """List the samples of a COCO file.

    Args:
        file: the JSON file.
        split: name that the rows' split is given.
        mask_cache: folder for the masks as PNG files.
        frames: folder of the pictures; None for the folder of the file.
        fps: frames a second of the pictures of a video.

    Raises:
        DatasetError: if the file cannot be read, is no such file, or names pictures that are missing or elsewhere.
    """
    path = Path(file)
    record = _read(path)
    if any(isinstance(image, dict) and "time" in image for image in record.get("images") or ()):
        return _of_video_file(path, record, split, mask_cache=mask_cache, videos=frames, fps=fps)
    paths = ClipPaths(path.parent if frames is None else Path(frames))
    try:
        names = category_names(record.get("categories"))
        rows = list(
            (_video_rows if isinstance(record.get("videos"), list) else _image_rows)(record, names, path, split)
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path} is no COCO file ({type(error).__name__}: {error}): export it again") from error
    if not rows:
        raise DatasetError(f"{path} has no annotations: expected masks of objects")

    def build(row: _CocoRow) -> AVSample:
        return _sample(row, paths, Path(mask_cache), fps)

    return collect_samples(rows, build, split=split)


def _of_video_file(
    path: Path, record: Mapping[str, Any], split: str, *, mask_cache: FilePath, videos: FilePath | None, fps: float
) -> list[AVSample]:
    """Make a row of each category of a file of `aurora-rl segment`; answer.json beside it names the video."""
    beside = path.parent / "answer.json"
    name = _read_json(beside).get("clip") if beside.is_file() else None
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise DatasetError(f"{path} has masks of a video: expected answer.json beside it, which names the clip's file")
    video = (path.parent if videos is None else Path(videos)) / name
    if not video.is_file():
        raise DatasetError(f"{path} is of the video {name!r}, but there is no {video}: name the videos' folder")
    root = Path(os.path.commonpath([video.parent.resolve(), path.parent.resolve()]))
    build = ClipBuilder(ClipPaths(root), fps=fps, num_frames=None, mask_cache=mask_cache)
    texts = {"video": str(video.resolve().relative_to(root)), "masks": str(path.resolve().relative_to(root))}
    rows = [
        read_row({**texts, "reference": category, "masks_category": category, "split": split}, row=row, place=str(path))
        for row, category in enumerate(category_names(record.get("categories")).values())
    ]
    return collect_samples(rows, build, split=split)


def _read_json(path: Path) -> Mapping[str, Any]:
    record = parse_json(path.read_bytes())
    return record if isinstance(record, dict) else {}


def _read(path: Path) -> Mapping[str, Any]:
    try:
        check_plain_file(path)
        if path.stat().st_size > MAX_BYTES:
            raise DatasetError(f"{path} has {path.stat().st_size} bytes: the limit is {MAX_BYTES}, split it")
        record = parse_json(path.read_bytes())
    except (OSError, NotPlainFileError, ValueError) as error:
        raise DatasetError(f"cannot read {path}: {error}; expected a COCO file") from error
    known = isinstance(record, dict) and isinstance(record.get("annotations"), list)
    if not known or not (isinstance(record.get("images"), list) or isinstance(record.get("videos"), list)):
        raise DatasetError(f"{path} is no COCO file: expected an object with images (or videos) and annotations")
    return record


def _image_rows(record: Mapping[str, Any], names: Mapping[Any, str], path: Path, split: str) -> Iterator[_CocoRow]:
    images = {image["id"]: image for image in record["images"]}
    groups: dict[tuple[Any, str, str], list[Mapping[str, Any]]] = {}
    for each in record["annotations"]:
        if each["image_id"] not in images:
            raise DatasetError(f"{path}: annotation {each.get('id')!r} has the image_id {each['image_id']!r}: no image")
        category = names.get(each["category_id"], str(each["category_id"]))
        groups.setdefault((each["image_id"], category, _sentence(each, category)), []).append(each)
    for number, ((image, category, text), masks) in enumerate(groups.items()):
        name = str(images[image]["file_name"])
        yield _row(number, path, split, category, text, files=(name,), masks=(tuple(masks),), clip=name)


def _video_rows(record: Mapping[str, Any], names: Mapping[Any, str], path: Path, split: str) -> Iterator[_CocoRow]:
    videos = {video["id"]: video for video in record["videos"]}
    for number, each in enumerate(record["annotations"]):
        if each["video_id"] not in videos:
            raise DatasetError(f"{path}: annotation {each.get('id')!r} has the video_id {each['video_id']!r}: no video")
        video = videos[each["video_id"]]
        files, masks = tuple(map(str, video["file_names"])), each["segmentations"]
        if len(files) != len(masks):
            raise DatasetError(
                f"{path}: annotation {each.get('id')!r} has {len(masks)} segmentations for {len(files)} pictures"
            )
        found = tuple(() if mask is None else ({"id": each.get("id"), "segmentation": mask},) for mask in masks)
        category = names.get(each["category_id"], str(each["category_id"]))
        text = _sentence(each, category)
        yield _row(number, path, split, category, text, files=files, masks=found, clip=str(each["video_id"]))


def _sentence(annotation: Mapping[str, Any], category: str) -> str:
    texts = (annotation.get(name) for name in SENTENCES)
    return next((text.strip() for text in texts if isinstance(text, str) and text.strip()), category)


def _row(number: int, path: Path, split: str, category: str, text: str, **fields: Any) -> _CocoRow:
    origin = f"{path.name} row {number}"
    return _CocoRow(str(number), number, split, category, text, origin, **fields)


def _sample(row: _CocoRow, paths: ClipPaths, cache: Path, fps: float) -> AVSample:
    files = [paths.find(row, "file_name", name) for name in row.files]
    try:
        masks = [_mask(each, file, cache) for each, file in zip(row.masks, files, strict=True)]
    except MediaError as error:
        raise MissingFilesError(str(error)) from error
    except ValueError as error:
        raise DatasetError(f"{row}: {error}") from error
    return row.to_sample(
        media_id=row.clip, fps=fps, frame_paths=tuple(map(str, files)), audio_path=None, mask_paths=tuple(masks)
    )


def _mask(annotations: Sequence[Mapping[str, Any]], file: Path, cache: Path) -> str:
    width, height = read_frame_size(file)
    return write_mask([run_lengths_of(each, (height, width)) for each in annotations], (height, width), cache)
