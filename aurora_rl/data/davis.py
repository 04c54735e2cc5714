"""A folder in DAVIS's layout as a list of samples, for `aurora-rl convert`.

    JPEGImages/480p/<video>/00000.jpg ...    Annotations/480p/<video>/00000.png ...    ImageSets/2017/<split>.txt

A mask is a palette whose index is the object's number, or grey of one object. Each object of a video is a row, with its
sentences where a file of them is given, one a line: `<video> <object> "the man on the left"`, as the text annotations
of DAVIS are. Without sentences an object is called by its number.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from aurora_rl.data.clip_files import natural_key
from aurora_rl.data.containers import FilePath, MediaError, check_is_file
from aurora_rl.data.files import DatasetError
from aurora_rl.data.masks import write_mask_array
from aurora_rl.data.sample import AVSample
from aurora_rl.files.existing import entries
from aurora_rl.files.plain import read_text_file

FRAMES, MASKS, SPLITS = "JPEGImages", "Annotations", "ImageSets"
#: A line of DAVIS's text annotations.
SENTENCE = re.compile(r"(?P<video>\S+)\s+(?P<object>\d+)\s+\"?(?P<text>.*?)\"?\s*")
#: Index by which DAVIS marks pixels that do not count.
VOID = 255
FPS = 24.0


@dataclasses.dataclass(frozen=True)
class _Video:
    """The files of one video: its frames in time order, and the mask of each that has one."""

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path | None, ...]


def list_davis_splits(root: FilePath) -> list[str]:
    """List the splits of a folder: the lists in ImageSets, or "train" for all videos where there are none."""
    names = {path.stem for path in (Path(root) / SPLITS).rglob("*.txt")}
    return sorted(names) or ["train"]


def load_davis(
    root: FilePath,
    split: str,
    *,
    mask_cache: FilePath,
    fps: float = FPS,
    sentences: FilePath | None = None,
) -> list[AVSample]:
    """List the samples of one split: a row for each sentence about an object, or for each object.

    Args:
        root: folder with JPEGImages/ and Annotations/.
        split: name of a list in ImageSets/, or "train" for all videos of a folder without lists.
        mask_cache: folder for the masks of single objects as PNG files.
        fps: frames a second of the stored frames.
        sentences: file of sentences about objects; None to call each object by its number.

    Raises:
        DatasetError: if a folder, a list or a mask is missing or cannot be used.
    """
    root = Path(root)
    frames, masks = (_with_videos(root / name) for name in (FRAMES, MASKS))
    texts = {} if sentences is None else _read_sentences(Path(sentences))
    samples: list[AVSample] = []
    for name in _videos_of(root, split, frames):
        video = _video(name, frames, masks)
        objects = _masks_of_objects(video, Path(mask_cache))
        for number, paths in objects.items():
            for text in texts.get((name, number), (f"object {number}",) if sentences is None else ()):
                samples.append(_sample(video, number, text, paths, row=len(samples), split=split, fps=fps))
    if not samples:
        raise DatasetError(f"split {split!r} of {root} has no objects{' with sentences' if sentences else ''}")
    return samples


def _sample(
    video: _Video, number: int, text: str, masks: Sequence[str], *, row: int, split: str, fps: float
) -> AVSample:
    return AVSample(
        uid=f"{video.name}_{number}",
        row=row,
        split=split,
        media_id=video.name,
        category="",
        reference=text,
        fps=fps,
        frame_paths=tuple(map(str, video.frames)),
        audio_path=None,
        mask_paths=tuple(masks),
        origin=f"{video.name} object {number}",
    )


def _with_videos(folder: Path) -> Path:
    """Return the folder that holds a folder for each video: the one given, or its only or largest resolution."""
    if not folder.is_dir():
        raise DatasetError(f"there is no {folder}: expected DAVIS's layout with {FRAMES}/ and {MASKS}/")
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    sizes = [path for path in inside if re.fullmatch(r"\d+p|Full-Resolution", path.name)]
    return next((path for path in sizes if path.name == "480p"), sizes[0]) if sizes else folder


def _videos_of(root: Path, split: str, frames: Path) -> list[str]:
    lists = sorted((root / SPLITS).rglob(f"{split}.txt"))
    if not (root / SPLITS).is_dir() and split == "train":
        return sorted(path.name for path in frames.iterdir() if path.is_dir())
    if not lists:
        raise DatasetError(f"{root} has no split {split!r}: choose from {', '.join(list_davis_splits(root))}")
    # DAVIS 2016 lists pairs of files, DAVIS 2017 names of videos; the newest list counts.
    lines = [line.split()[0] for line in read_text_file(lists[-1]).splitlines() if line.strip()]
    names = [Path(line).parent.name if "/" in line else line for line in lines]
    for name in names:
        if name in ("", ".", "..") or "\\" in name or not (frames / name).is_dir():
            raise DatasetError(
                f"{lists[-1]} names the video {name!r}, which {frames} lacks: it holds {entries(frames)}"
            )
    return list(dict.fromkeys(names))


def _video(name: str, frames: Path, masks: Path) -> _Video:
    pictures = sorted((frames / name).glob("*.jpg"), key=natural_key) or sorted(
        (frames / name).glob("*.png"), key=natural_key
    )
    if not pictures:
        raise DatasetError(f"{frames / name} holds no frames: expected 00000.jpg, 00001.jpg ...")
    found = [masks / name / f"{picture.stem}.png" for picture in pictures]
    return _Video(name, tuple(pictures), tuple(path if path.is_file() else None for path in found))


def _masks_of_objects(video: _Video, cache: Path) -> dict[int, list[str]]:
    """Write the masks of each object; "" for a frame that is not annotated."""
    indices = [None if path is None else _read_indices(path) for path in video.masks]
    numbers = sorted({int(number) for each in indices if each is not None for number in np.unique(each)} - {0, VOID})
    if all(each is None for each in indices):
        raise DatasetError(f"the video {video.name!r} has no masks: expected {MASKS}/.../{video.name}/00000.png ...")
    return {
        number: ["" if each is None else write_mask_array(each == number, cache) for each in indices]
        for number in numbers
    }


def _read_indices(path: Path) -> np.ndarray:
    """Read a mask (H, W) of object numbers; grey of one object counts as number 1."""
    try:
        check_is_file(path)
        with Image.open(path) as image:
            if image.mode == "P":
                return np.asarray(image)
            return (np.asarray(image.convert("L")) > 0).astype(np.uint8)
    except (OSError, ValueError, MediaError, Image.DecompressionBombError) as error:
        raise DatasetError(f"cannot read the mask {path}: {error}; get the file again") from error


def _read_sentences(path: Path) -> Mapping[tuple[str, int], list[str]]:
    found: dict[tuple[str, int], list[str]] = {}
    for place, match in _lines(path):
        if match is None or not match["text"].strip():
            raise DatasetError(f'{place}: expected a line such as dogs-jump 1 "the dog on the left"')
        found.setdefault((match["video"], int(match["object"])), []).append(match["text"].strip())
    return found


def _lines(path: Path) -> Iterator[tuple[str, re.Match[str] | None]]:
    for number, line in enumerate(read_text_file(path).removeprefix("\ufeff").splitlines(), start=1):
        if line.strip():
            yield f"{path}:{number}", SENTENCE.fullmatch(line.strip())
