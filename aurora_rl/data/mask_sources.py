"""The masks of an own clip, as people and tools save them: COCO JSON, PNG files, or an npz file.

Each source tells which of its masks belongs to which time or picture of the clip; `Timeline.choose` then finds one for
each sampled frame. Masks that are not PNG files already are written as such (`masks` says why).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from aurora_rl.data import run_lengths
from aurora_rl.data.containers import TIME_TOLERANCE
from aurora_rl.data.files import MAX_TABLE_BYTES, DatasetError
from aurora_rl.data.masks import write_mask
from aurora_rl.files.plain import check_plain_file, parse_json

#: Largest file of masks that is read.
MAX_BYTES = MAX_TABLE_BYTES
MAX_ARRAY_BYTES = 2**30
COCO_REMEDY = "give each image a `time` in seconds or a `frame_index`"


@dataclasses.dataclass(frozen=True)
class Timeline:
    """The pictures of a clip, and which of them are frames of the sample.

    Attributes:
        kept: F times of the sample's frames, in seconds after the first picture.
        sampled: times of all frames at the sampling rate; `kept` are some of them, evenly spaced.
        pictures: times of all pictures of the clip.
        step: seconds from one sampled frame to the next.
        names: file names of the pictures, where each is a file; else empty.
    """

    kept: tuple[float, ...]
    sampled: tuple[float, ...]
    pictures: tuple[float, ...]
    step: float
    names: tuple[str, ...] = ()

    def time_of_picture(self, index: int) -> float:
        """Return the time of a picture by its number.

        Raises:
            ValueError: if there is no such picture.
        """
        if not 0 <= index < len(self.pictures):
            raise ValueError(f"frame_index is {index}, but the clip has the pictures 0 to {len(self.pictures) - 1}")
        return self.pictures[index]

    def times_of(self, number: int) -> tuple[float, ...]:
        """Return the times of so many masks in a row: one for each sampled frame, or one for each picture.

        Raises:
            ValueError: if there are not as many of either.
        """
        for times in (self.sampled, self.pictures):
            if len(times) == number:
                return times
        raise ValueError(
            f"there are {number} masks for {len(self.sampled)} sampled frames of {len(self.pictures)} pictures: give "
            "one for each sampled frame, or one for each picture, or say by COCO JSON or npz which times they have"
        )

    def choose(self, times: Sequence[float]) -> list[int | None]:
        """Choose for each of the sample's frames the index of its mask; None for a frame that is not annotated.

        A mask belongs to a frame if it lies within half a sampling step of it. Of several, one of the picture that is
        on screen then is better than others, then the nearest, then the earliest.
        """
        found = np.asarray(times, dtype=np.float64)
        return [self._nearest(frame, found) for frame in self.kept]

    def _nearest(self, frame: float, times: np.ndarray) -> int | None:
        distances = np.abs(times - frame)
        near = np.flatnonzero(distances <= self.step / 2 + TIME_TOLERANCE)
        if not near.size:
            return None
        on_screen = np.searchsorted(self.pictures, frame + TIME_TOLERANCE, side="right") - 1
        is_other = np.searchsorted(self.pictures, times[near] + TIME_TOLERANCE, side="right") - 1 != on_screen
        order = np.lexsort((times[near], distances[near].round(6), is_other))
        return int(near[order[0]])


def coco_masks(
    path: Path, timeline: Timeline, *, size: tuple[int, int], names: Sequence[str | None], folder: Path
) -> tuple[str, ...]:
    """Return the mask file of each frame from a COCO file: "" for a frame without an image in it.

    Args:
        path: JSON file with images, annotations and categories; masks are run lengths or polygons.
        timeline: the clip's pictures.
        size: (height, width) of the frames.
        names: names of the row's category in order of preference, where known: reference, category, masks_category.
        folder: folder of PNG files that masks are written to.

    Raises:
        DatasetError: naming the file, what is wrong in it and what to do.
    """
    try:
        coco = _read_coco(os.fspath(path), path.stat().st_mtime_ns, path.stat().st_size)
        categories = _choose_categories(coco, names)
        images = coco.images_of(timeline)
        return tuple(
            "" if index is None else write_mask(coco.rles_of(images[index][1], categories, size), size, folder)
            for index in timeline.choose([time for time, _ in images])
        )
    except (ValueError, OSError) as error:
        raise DatasetError(f"the masks {path}: {error}") from error


@dataclasses.dataclass(frozen=True)
class _Coco:
    """A COCO file: images, annotations by image and category, names of categories, and images by file name."""

    images: Sequence[Mapping[str, Any]]
    annotations: Mapping[tuple[Any, Any], Sequence[Mapping[str, Any]]]
    categories: Mapping[Any, str]
    by_name: Mapping[str, Sequence[Mapping[str, Any]]]

    @property
    def has_times(self) -> bool:
        """Whether the images say when they are on screen."""
        return any(image.get("time") is not None or image.get("frame_index") is not None for image in self.images)

    def images_of(self, timeline: Timeline) -> list[tuple[float, Any]]:
        """Return time and id of each image, in order of time."""
        if timeline.names and not self.has_times:
            return self._images_by_name(timeline)
        timed = sorted(((_image_time(image, timeline), image["id"]) for image in self.images), key=lambda pair: pair[0])
        for (time, one), (next_time, other) in zip(timed, timed[1:], strict=False):
            if time == next_time:
                raise ValueError(f"the images {one!r} and {other!r} have one time, {time:g} s: give each clip a file")
        return timed

    def _images_by_name(self, timeline: Timeline) -> list[tuple[float, Any]]:
        """Find the images of a clip's pictures by their file names; the file may hold those of other clips, too."""
        found: list[tuple[float, Any]] = []
        for time, name in zip(timeline.pictures, timeline.names, strict=True):
            images = [
                image["id"]
                for image in self.by_name.get(os.path.basename(name), ())
                if f"/{name}".endswith("/" + str(image["file_name"]).removeprefix("./"))
            ]
            if len(images) > 1:
                raise ValueError(f"the images {images[:2]} have the file_name of the frame {name!r}: keep one of them")
            found += [(time, image) for image in images]
        if not found:
            raise ValueError(f"no image has the file_name of a frame, such as {timeline.names[0]!r}: {COCO_REMEDY}")
        return found

    def rles_of(self, image: Any, categories: Sequence[Any], size: tuple[int, int]) -> list[Mapping[str, Any]]:
        """Return the run lengths of an image's annotations of some categories."""
        found = [each for category in categories for each in self.annotations.get((image, category), ())]
        return [run_lengths_of(each, size) for each in found]


@functools.lru_cache(maxsize=2)  # a file may serve several rows that follow each other
def _read_coco(path: str, _changed: int, num_bytes: int) -> _Coco:
    if num_bytes > MAX_BYTES:
        raise ValueError(f"it has {num_bytes} bytes: the limit is {MAX_BYTES}, give each clip a file")
    check_plain_file(path)
    with open(path, "rb") as file:
        record = parse_json(file.read())
    lists = {name: record.get(name) if isinstance(record, dict) else None for name in ("images", "annotations")}
    if not all(isinstance(each, list) for each in lists.values()):
        raise ValueError("expected a COCO file, an object with the lists images, annotations and categories")
    images, annotations = (_objects(lists[name], name) for name in ("images", "annotations"))
    if not images:
        raise ValueError('it has no images: list the annotated frames, or write "empty" for a reference to nothing')
    known = {_hashable(image.get("id"), "an image's id") for image in images}
    by_image: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
    for number, each in enumerate(annotations):
        image = _hashable(each.get("image_id"), f"image_id of annotation {number}")
        if image not in known:
            raise ValueError(f"annotation {number} has the image_id {image!r}, which no image has")
        category = _hashable(each.get("category_id"), f"category_id of annotation {number}")
        by_image.setdefault((image, category), []).append(each)
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for image in images:
        by_name.setdefault(os.path.basename(str(image.get("file_name", ""))), []).append(image)
    return _Coco(images, by_image, category_names(record.get("categories"), by_image), by_name)


def _objects(values: Any, name: str) -> list[Mapping[str, Any]]:
    wrong = next((each for each in values if not isinstance(each, dict)), None)
    if wrong is not None:
        raise ValueError(f"{name} holds {str(wrong)[:40]!r}: expected objects, as COCO has them")
    return list(values)


def _hashable(value: Any, what: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{what} is {str(value)[:40]!r}: expected a number")
    return value


def category_names(categories: Any, annotations: Mapping[tuple[Any, Any], Any] | None = None) -> dict[Any, str]:
    """Return the names of a COCO file's categories by id; without a list of them each id is its own name.

    Args:
        categories: the file's list, None without one.
        annotations: annotations by image and category, whose ids are known then.

    Raises:
        ValueError: if it is no list of categories.
    """
    if categories is None:
        return {category: str(category) for _, category in annotations or ()}
    if not isinstance(categories, list):
        raise ValueError("categories is no list: expected objects with id and name, as COCO has them")
    return {
        _hashable(each.get("id"), "a category's id"): str(each.get("name", each["id"]))
        for each in _objects(categories, "categories")
    }


def _choose_categories(coco: _Coco, names: Sequence[str | None]) -> list[Any]:
    """Return the ids of the row's category: the only one, or those of the first of the names that the file has."""
    distinct = {_spelling(name) for name in coco.categories.values()}
    if len(distinct) <= 1:
        return list(coco.categories)
    for name in names:
        ids = [key for key, own in coco.categories.items() if name and _spelling(own) == _spelling(name)]
        if ids:
            return ids
    raise ValueError(
        f"it has the categories {sorted(coco.categories.values())}, none named as the row's reference or category: "
        "name the one that is meant in the column masks_category"
    )


def _spelling(name: str) -> str:
    return " ".join(name.split()).casefold()


def _image_time(image: Mapping[str, Any], timeline: Timeline) -> float:
    """Return an image's time by its `time` or its `frame_index`."""
    time, index = image.get("time"), image.get("frame_index")
    if time is not None:
        if isinstance(time, bool) or not isinstance(time, int | float) or not math.isfinite(time):
            raise ValueError(f"image {image['id']!r} has the time {str(time)[:40]!r}: expected seconds")
        return float(time)
    if index is not None:
        if isinstance(index, bool) or not isinstance(index, int):
            raise ValueError(f"image {image['id']!r} has the frame_index {str(index)[:40]!r}: expected a whole number")
        return timeline.time_of_picture(index)
    raise ValueError(f"image {image['id']!r} does not say when it is on screen: {COCO_REMEDY}")


def run_lengths_of(annotation: Mapping[str, Any], size: tuple[int, int]) -> Mapping[str, Any]:
    """Return the run lengths of an annotation of a picture of this (height, width); polygons are filled.

    Raises:
        ValueError: if it has neither run lengths nor polygons.
    """
    found = annotation.get("segmentation")
    if isinstance(found, dict):
        return found
    if not isinstance(found, list) or not found:
        raise ValueError(
            f"annotation {annotation.get('id')!r} has no segmentation: expected run lengths or polygons, since a box "
            "is no mask"
        )
    for polygon in found:
        _check_polygon(polygon, size, annotation.get("id"))
    merged = coco_mask.merge(coco_mask.frPyObjects(found, *size))
    counts = merged["counts"]  # bytes in this version of pycocotools, text in others
    return {"size": list(size), "counts": counts if isinstance(counts, str) else counts.decode("ascii")}


def _check_polygon(polygon: Any, size: tuple[int, int], name: Any) -> None:
    """Refuse what pycocotools would read beyond its memory or fill for ever: it trusts its input."""
    is_list = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
    if not is_list or not all(isinstance(each, int | float) and not isinstance(each, bool) for each in polygon):
        raise ValueError(f"annotation {name!r} has a polygon that is no list of x, y, x, y, x, y ...: draw it again")
    limit = 2 * max(size)
    if not all(-limit <= each <= limit for each in polygon):  # also refuses NaN
        raise ValueError(f"annotation {name!r} has a polygon far outside its {size[1]}x{size[0]} pixels: draw it again")


def npz_masks(path: Path, timeline: Timeline, *, size: tuple[int, int], folder: Path) -> tuple[str, ...]:
    """Return the mask file of each frame from an npz file: "" for a frame without a mask in it.

    Args:
        path: file with `masks` (N, H, W) of bool or integers, or one array of any name, and with their `times` (N,) in
            seconds or `frame_index` (N,), unless there is one mask for each frame.
        timeline: the clip's pictures.
        size: (height, width) of the frames.
        folder: folder of PNG files that masks are written to.

    Raises:
        DatasetError: naming the file, what is wrong in it and what to do.
    """
    try:
        check_plain_file(path)
        with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as arrays:
            name = _name_of_masks(arrays.files)
            shape = _checked_shape(archive, name, size)
            chosen = timeline.choose(_npz_times(arrays, archive, shape[0], timeline))
            masks = arrays[name] > 0
    except (ValueError, OSError, zipfile.BadZipFile, KeyError, EOFError) as error:
        raise DatasetError(f"the masks {path}: {error}; save them by np.savez(path, masks=...)") from error
    rles = {index: run_lengths.encode_masks(masks[None, index])[0] for index in {*chosen} if index is not None}
    return tuple("" if index is None else write_mask([rles[index]], size, folder) for index in chosen)


def _name_of_masks(names: Sequence[str]) -> str:
    others = [name for name in names if name not in ("times", "frame_index")]
    if "masks" in others:
        return "masks"
    if len(others) != 1:
        raise ValueError(f"it holds the arrays {sorted(names)}: expected one named masks")
    return others[0]


def _checked_shape(archive: zipfile.ZipFile, name: str, size: tuple[int, int]) -> tuple[int, ...]:
    """Read shape and type of an array from its header, before memory is taken for it."""
    shape, dtype = _header(archive, name)
    if len(shape) != 3 or dtype.kind not in "biu":
        raise ValueError(f"{name} is {dtype} of shape {shape}: expected bool or whole numbers of shape (N, H, W)")
    if shape[1:] != size:
        raise ValueError(f"{name} has masks of {shape[2]}x{shape[1]} pixels for frames of {size[1]}x{size[0]}")
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes > MAX_ARRAY_BYTES:
        raise ValueError(
            f"{name} takes {num_bytes} bytes: the limit is {MAX_ARRAY_BYTES}, keep the sampled frames alone"
        )
    return shape


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return shape, dtype


def _npz_times(arrays: Any, archive: zipfile.ZipFile, number: int, timeline: Timeline) -> Sequence[float]:
    for name, kinds in (("times", "iuf"), ("frame_index", "iu")):
        if name not in arrays.files:
            continue
        shape, dtype = _header(archive, name)
        if shape != (number,) or dtype.kind not in kinds:
            raise ValueError(f"{name} is {dtype} of shape {shape}: expected one number for each of {number} masks")
        values = arrays[name].tolist()
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{name} holds values that are not finite: expected seconds")
        return values if name == "times" else [timeline.time_of_picture(index) for index in values]
    return timeline.times_of(number)


def png_masks(files: Sequence[str | None], timeline: Timeline, *, stems: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the mask file of each frame from PNG files: "" for a frame without one.

    Args:
        files: PNG files in time order, None for a frame that is not annotated.
        timeline: the clip's pictures.
        stems: names of the files without suffix; where the pictures' files have the same names, they say which mask is
            whose.

    Raises:
        ValueError: if it cannot be told to which frame a file belongs.
    """
    own = [Path(name).stem for name in timeline.names]
    if stems and set(stems) <= set(own) and len(set(own)) == len(own):
        times: Sequence[float] = [timeline.pictures[own.index(stem)] for stem in stems]
    else:
        times = timeline.times_of(len(files))
    return tuple("" if index is None else files[index] or "" for index in timeline.choose(times))
