"""Masks in COCO's JSON, as a row's prediction: of one clip a file, or of a whole benchmark in one.

A clip's file is what `aurora-rl segment` writes: images are frames, categories are references.

    {"images": [{"id": 0, "file_name": "000000.png", "time": 0.0, "height": 480, "width": 854}, ...],
     "annotations": [{"image_id": 0, "category_id": 0, "segmentation": {"size": [480, 854], "counts": "..."}}, ...],
     "categories": [{"id": 0, "name": "the drum"}]}

A whole benchmark's file has the same form, whose images name their row or clip by `uid`, by `row`, by the folder of
`file_name` ("<name>/<frame>.png") or by `video_id` among `videos`; or it is a list of results, or JSON lines:

    [{"uid": "abc_cat_1", "frame": 0, "segmentation": {...}}, {"row": 7, "frame": 0, "segmentation": null}, ...]
    [{"id": "kitchen-1", "segmentations": [{...}, null, {...}]}, {"image_id": "kitchen-2/3", "segmentation": {...}}]

A frame without an annotation has an empty mask. Run lengths are COCO's, compressed or not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch

from aurora_rl.data import run_lengths
from aurora_rl.data.sample import AVSample
from aurora_rl.evaluation.predictions import PredictedMasks, PredictionError, check_count, frame_times, num_frames_of
from aurora_rl.files.fingerprint import fingerprint_values
from aurora_rl.files.plain import check_plain_file, parse_json, read_records

#: Largest number of frames where nothing but the masks tells it.
MAX_FRAMES = 100_000
#: Name of a row or clip (text), number of a row, or None in a file that is one clip's alone.
Key = str | int | None


class Frame(NamedTuple):
    """An image of a COCO file; the time is in seconds, the size (height, width) in pixels."""

    id: Any
    number: int | None
    time: float | None
    size: tuple[int, int] | None


class Mask(NamedTuple):
    """An annotation: the id of its image (the number of a frame in a list of results), its category, run lengths."""

    image: Any
    category: Any
    rle: Any


@dataclasses.dataclass(frozen=True)
class CocoClip:
    """One clip's entries of a COCO file.

    Attributes:
        path: path of the file, with the clip's name in it.
        frames: images of the clip; None for a list of results, which has an entry only where there is a mask.
        masks: annotations.
        categories: names of the categories by id.
        is_shared: whether several rows with questions of their own have these masks, so that a row's must be named.
    """

    path: str
    frames: tuple[Frame, ...] | None
    masks: tuple[Mask, ...]
    categories: Mapping[Any, str]
    is_shared: bool = False

    @property
    def fingerprint(self) -> str:
        """Hash of all that the masks depend on."""
        return fingerprint_values([self.frames, self.masks, sorted(map(str, self.categories.items()))])[:16]

    def read(self, sample: AVSample) -> PredictedMasks:
        """Decode a row's masks.

        Raises:
            PredictionError: if no category is the row's, a frame has no image, or run lengths are invalid.
        """
        category = self._category_of(sample)
        own = [mask for mask in self.masks if category is None or mask.category == category]
        images = self._images_of(sample, own)
        by_image: dict[Any, list[Any]] = {}
        for mask in own:
            if mask.rle is not None:
                by_image.setdefault(mask.image, []).append(mask.rle)
        try:
            size = self._size(own)
            check_count((len(images), *size), self.path)
            masks = [_union(by_image.get(image, ()), size) for image in images]
        except PredictionError:
            raise
        except ValueError as error:
            raise PredictionError(f"{self.path}: {error}") from error
        return PredictedMasks(torch.from_numpy(np.stack(masks)).float())

    def _category_of(self, sample: AVSample) -> Any:
        """Return the id of the row's category; None for all masks."""
        if len(self.categories) <= 1 and not self.is_shared:
            return None
        found = find_category(self.categories, sample.reference, sample.category)
        if found is None:
            raise PredictionError(
                f"{self.path} has the categories {_some(self.categories.values())}: name one as the reference, "
                f"{sample.reference!r}, or give the row a file of its own"
            )
        return found

    def _images_of(self, sample: AVSample, masks: Iterable[Mask]) -> list[Any]:
        """Return the image of each of the row's frames."""
        count = num_frames_of(sample)
        if self.frames is None:
            numbers = {mask.image for mask in masks}
            if count is None:
                count = max(numbers, default=0) + 1
                if count > MAX_FRAMES:
                    raise PredictionError(
                        f"{self.path} has a mask of frame {count - 1}, but no clip has more than {MAX_FRAMES} frames: "
                        "count them from 0"
                    )
            if outside := sorted(number for number in numbers if number >= count):
                raise PredictionError(
                    f"{self.path} has a mask of frame {outside[0]}, but the clip has {count} frames, counted from 0"
                )
            return list(range(count))
        if all(frame.time is not None for frame in self.frames) and self.frames and count is not None:
            return self._nearest(frame_times(sample, count), tolerance=0.5 / sample.fps + 1e-6)
        return self._in_order(count)

    def _nearest(self, times: Sequence[float], *, tolerance: float) -> list[Any]:
        """Return the image that is nearest in time to each frame, within a tolerance in seconds."""
        assert self.frames is not None
        given = sorted((frame.time or 0.0, index) for index, frame in enumerate(self.frames))
        there = np.array([time for time, _ in given])
        images = []
        for index, time in enumerate(times):
            nearest = int(np.abs(there - time).argmin())
            if abs(there[nearest] - time) > tolerance:
                raise PredictionError(
                    f"{self.path} has no image within {tolerance:.2f} s of frame {index}, at {time:.2f} s: its "
                    f"{len(there)} images are at {there[0]:.2f} to {there[-1]:.2f} s; predict each frame (for masks "
                    "that were made from frames, say their rate by --fps), or leave `time` out of the images, which "
                    "are then taken in order"
                )
            images.append(self.frames[given[nearest][1]].id)
        return images

    def _in_order(self, count: int | None) -> list[Any]:
        """Return all images in the order of their numbers, as many as the row has frames."""
        assert self.frames is not None
        if count is not None and len(self.frames) != count:
            raise PredictionError(f"{self.path} has {len(self.frames)} images, the clip {count} frames: predict each")
        numbers = [frame.number for frame in self.frames]
        known = sorted(number for number in numbers if number is not None)
        if len(known) < len(numbers) or known != list(range(known[0], known[0] + len(known)) if known else []):
            raise PredictionError(
                f"{self.path} does not number its images one by one ({numbers[:8]}): give each `frame_index`, or a "
                "`file_name` that ends in its number"
            )
        return [frame.id for frame in sorted(self.frames, key=lambda frame: frame.number or 0)]

    def _size(self, masks: Iterable[Mask]) -> tuple[int, int]:
        """Return the size (height, width) of all masks; 1 x 1 where nothing tells it, as they are empty then."""
        sizes = {frame.size for frame in self.frames or () if frame.size is not None}
        sizes |= {run_lengths.size_of(mask.rle) for mask in masks if mask.rle is not None}
        if len(sizes) > 1:
            raise ValueError(f"its masks and images have the sizes {sorted(sizes)[:3]} (height, width): give them one")
        return next(iter(sizes), (1, 1))


@dataclasses.dataclass(frozen=True)
class CocoFile:
    """A COCO file of one clip, which is read with the row that asks for its masks.

    Attributes:
        path: path of the file.
        fingerprint: hash that changes if the file changes.
        is_shared: whether several rows with questions of their own have these masks.
    """

    path: str
    fingerprint: str
    is_shared: bool = False

    @property
    def categories(self) -> Mapping[Any, str]:
        """Names of its categories by id; raises as `read`."""
        return read_clip(self.path).categories

    def read(self, sample: AVSample) -> PredictedMasks:
        """Read a row's masks.

        Raises:
            PredictionError: if the file is damaged, or as `CocoClip.read`.
        """
        return dataclasses.replace(read_clip(self.path), is_shared=self.is_shared).read(sample)


def find_category(categories: Mapping[Any, str], reference: str, category: str) -> Any:
    """Return the id of the category that is named as a row's reference, else as its category; None for none."""
    for wanted in (reference, category):
        for key, name in categories.items():
            if " ".join(name.split()).casefold() == " ".join(wanted.split()).casefold():
                return key
    return None


def _some(names: Iterable[str]) -> str:
    names = [repr(name) for name in names]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _union(rles: Sequence[Any], size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    for rle in rles:
        mask |= run_lengths.decode(rle, size)
    return mask


# ------------------------------------------------------------------------------------------------ files


def read_clip(path: str) -> CocoClip:
    """Read a file of one clip; its images name no row, and if they do, that is left alone.

    Raises:
        PredictionError: if it is no such file; the error names it and the entry.
    """
    damaged: list[str] = []
    content = _parse(path)
    if isinstance(content, dict):
        clips = list(_clips_of_dict(content, path, is_one=True))
    else:
        clips = list(_clips_of_list(content, path, damaged, is_one=True))
    if damaged:
        raise PredictionError(damaged[0])
    return clips[0][1] if clips else CocoClip(path, () if isinstance(content, dict) else None, (), {})


def read_benchmark(path: str, damaged: list[str]) -> list[tuple[Key, CocoClip]]:
    """Read a file that holds the masks of many rows, by the rows' or clips' names.

    Args:
        path: the file.
        damaged: list to which the problem of each invalid entry is appended.

    Raises:
        PredictionError: if it is no such file; the error names it.
    """
    content = _parse(path)
    if isinstance(content, dict):
        return list(_clips_of_dict(content, path, is_one=False))
    return list(_clips_of_list(content, path, damaged, is_one=False))


def _parse(path: str) -> dict[str, Any] | list[Any]:
    try:
        check_plain_file(path)
        if path.lower().endswith(".jsonl"):
            return [record for _, record in read_records(path)]
        content = parse_json(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise PredictionError(f"cannot read {path}: {error}; expected COCO's JSON in UTF-8") from error
    if isinstance(content, list) or (isinstance(content, dict) and isinstance(content.get("images"), list)):
        return content
    raise PredictionError(
        f"{path} is no COCO file: expected an object with `images`, `annotations` and `categories`, as `aurora-rl "
        "segment` writes it, or a list of results"
    )


def _clips_of_dict(content: Mapping[str, Any], path: str, *, is_one: bool) -> Iterator[tuple[Key, CocoClip]]:
    """Yield the clips of a COCO file with their names; of a file of one clip, all of it."""
    categories = _names(content.get("categories"), path, what="categories")
    videos = _names(content.get("videos"), path, what="videos")
    frames: dict[Key, list[Frame]] = {}
    key_of: dict[Any, Key] = {}
    for index, image in enumerate(content["images"]):
        place = f"{path}: images[{index}]"
        frame = _frame(image, place)
        if frame.id in key_of:
            raise PredictionError(f"{place} has the id {frame.id!r} of another image: give each its own")
        key_of[frame.id] = None if is_one else _key_of_image(image, videos, place)
        frames.setdefault(key_of[frame.id], []).append(frame)
    masks: dict[Key, list[Mask]] = {}
    for index, annotation in enumerate(_list(content.get("annotations"), path, what="annotations")):
        mask = _annotation(annotation, key_of, categories, f"{path}: annotations[{index}]")
        masks.setdefault(key_of[mask.image], []).append(mask)
    for key, own in frames.items():
        origin = path if key is None else f"{path}, {key!r}"
        yield key, CocoClip(origin, tuple(own), tuple(masks.get(key, ())), categories)


def _frame(image: Any, place: str) -> Frame:
    if not isinstance(image, dict) or type(image.get("id")) not in (int, str):
        raise PredictionError(f"{place} is {str(image)[:80]!r}: expected an image with an `id`")
    time = image.get("time")
    if time is not None and (type(time) not in (int, float) or not math.isfinite(time)):
        raise PredictionError(f"{place} has the time {time!r}: expected seconds")
    size = None
    if image.get("height") is not None and image.get("width") is not None:
        try:
            size = run_lengths.size_of({"size": [image["height"], image["width"]]})
        except ValueError as error:
            raise PredictionError(f"{place}: {error}") from error
    return Frame(image["id"], _number_of(image), time, size)


def _number_of(record: Mapping[str, Any]) -> int | None:
    """Return the number of a frame: `frame_index` or `frame`, else that of the file's name, else the id."""
    for name in ("frame_index", "frame"):
        if type(record.get(name)) is int:
            return record[name]
    digits = ""
    if isinstance(record.get("file_name"), str):
        stem = PurePosixPath(record["file_name"]).stem
        digits = stem[len(stem.rstrip("0123456789")) :]
    if digits.isdecimal() and len(digits) < 10:
        return int(digits)
    return record["id"] if type(record.get("id")) is int else None


def _key_of_image(image: Mapping[str, Any], videos: Mapping[Any, str], place: str) -> Key:
    """Return the name of the row or clip that an image belongs to."""
    if (key := _named_key(image, ("row", "uid"))) is not None:
        return key
    if image.get("video_id") in videos:
        return videos[image["video_id"]]
    parent = str(PurePosixPath(str(image.get("file_name") or "")).parent)
    if parent not in (".", "/", ""):
        return parent
    raise PredictionError(
        f"{place} names no row: give it `uid` or `row`, or a file_name of the form <id>/<frame>.png; the file of one "
        "clip, as `aurora-rl segment` writes it, goes into a folder DIR/<id>.json, and --predictions DIR"
    )


def _named_key(record: Mapping[str, Any], names: Sequence[str]) -> Key:
    """Return the row's number or name under the first of the keys that a record has."""
    for name in names:
        value = record.get(name)
        if type(value) is int and value >= 0:
            return value if name == "row" else str(value)
        if isinstance(value, str) and value:
            return value
    return None


def _annotation(annotation: Any, images: Mapping[Any, Any], categories: Mapping[Any, str], place: str) -> Mask:
    if not isinstance(annotation, dict):
        raise PredictionError(f"{place} is {str(annotation)[:80]!r}: expected an annotation")
    image, category = annotation.get("image_id"), annotation.get("category_id")
    if type(image) not in (int, str) or image not in images:
        raise PredictionError(f"{place} has the image_id {image!r}, which no image has")
    if categories and (type(category) not in (int, str) or category not in categories):
        raise PredictionError(f"{place} has the category_id {category!r}, which no category has")
    return Mask(image, category, _run_lengths(annotation, "segmentation", place))


def _run_lengths(record: Mapping[str, Any], name: str, place: str) -> Any:
    rle = record.get(name)
    if isinstance(rle, list):
        raise PredictionError(f"{place} has a polygon: give run lengths, as pycocotools' frPyObjects makes of it")
    if name not in record or not (rle is None or isinstance(rle, dict)):
        raise PredictionError(f"{place} has no {name}: expected COCO run lengths, or null for an empty mask")
    return rle


def _names(entries: Any, path: str, *, what: str) -> dict[Any, str]:
    names: dict[Any, str] = {}
    for index, entry in enumerate(_list(entries, path, what=what)):
        if not isinstance(entry, dict) or type(entry.get("id")) not in (int, str):
            raise PredictionError(f"{path}: {what}[{index}] is {str(entry)[:80]!r}: expected `id` and `name`")
        if entry["id"] in names:
            raise PredictionError(f"{path}: {what}[{index}] has the id {entry['id']!r} of another: give each its own")
        names[entry["id"]] = str(entry.get("name", ""))
    return names


def _list(value: Any, path: str, *, what: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise PredictionError(f"{path} has {what} that are a {type(value).__name__}: expected a list")
    return value or []


# ------------------------------------------------------------------------------------------------ lists of results


def _clips_of_list(
    records: Sequence[Any], path: str, damaged: list[str], *, is_one: bool
) -> Iterator[tuple[Key, CocoClip]]:
    """Yield the clips of a list of results; a frame that is given twice, or an invalid entry, is a problem."""
    masks: dict[Key, dict[int, Mask]] = {}
    whole: dict[Key, tuple[Frame, ...]] = {}  # of `segmentations`, which are one a frame
    for index, record in enumerate(records):
        place = f"{path}[{index}]"
        try:
            key, given = _result(record, place, is_one=is_one)
            own = masks.setdefault(key, {})
            if "segmentations" in record:
                whole[key] = tuple(Frame(number, number, None, None) for number in given)
            for number, rle in given.items():
                if number in own or (key in whole and number >= len(whole[key])):
                    raise PredictionError(f"{place} gives frame {number} of {key!r} a second time: join the masks")
                own[number] = Mask(number, None, rle)
        except PredictionError as error:
            damaged.append(str(error))
    for key, found in masks.items():
        origin = path if key is None else f"{path}, {key!r}"
        yield key, CocoClip(origin, whole.get(key), tuple(found.values()), {})


def _result(record: Any, place: str, *, is_one: bool) -> tuple[Key, dict[int, Any]]:
    """Return a result's row, and its run lengths by frame."""
    if not isinstance(record, dict):
        raise PredictionError(
            f"{place} is {str(record)[:80]!r}: expected a result, such as {{uid, frame, segmentation}}"
        )
    key, number = _named_key(record, ("row", "uid", "id")), record.get("frame", record.get("frame_index"))
    image = record.get("image_id")
    if isinstance(image, str) and (parent := str(PurePosixPath(image).parent)) != ".":
        key = parent if key is None else key
        number = _number_of({"file_name": image}) if number is None else number
    number = image if number is None and type(image) is int else number
    if key is None and not is_one:
        raise PredictionError(f"{place} names no row: give it `uid`, `row`, or an image_id of the form <id>/<frame>")
    key = None if is_one else key
    if "segmentations" in record:
        listed = _list(record["segmentations"], place, what="segmentations")
        return key, {
            frame: _run_lengths({"segmentations": rle}, "segmentations", place) for frame, rle in enumerate(listed)
        }
    if type(number) is not int or number < 0:
        raise PredictionError(
            f"{place} names no frame: give it `frame`, counted from 0, or `segmentations`, one a frame"
        )
    return key, {number: _run_lengths(record, "segmentation", place)}
