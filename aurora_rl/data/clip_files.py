"""The files of an own clip: paths of a manifest's row become the `AVSample` of its clip.

Paths are relative to the root, which is the manifest's folder, and never lead out of it. Nothing is decoded but a
video's first picture, whose size and times are then known (`video_facts`).
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from aurora_rl.data.containers import TIME_TOLERANCE, FilePath, MediaError
from aurora_rl.data.draw import evenly_spaced
from aurora_rl.data.files import MASK_SUFFIXES, DatasetError, MissingFilesError, Row, UnsafePathError
from aurora_rl.data.manifest_rows import EMPTY_MASKS, ManifestRow
from aurora_rl.data.mask_sources import Timeline, coco_masks, npz_masks, png_masks
from aurora_rl.data.masks import remembered
from aurora_rl.data.media import check_upright, read_frame_size
from aurora_rl.data.sample import AVSample
from aurora_rl.data.video_facts import VideoFacts, read_video_facts
from aurora_rl.files.cache_folder import cache_folder
from aurora_rl.files.existing import what_is_there

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class ClipPaths:
    """Finds files under a root by the texts of a manifest.

    Args:
        root: folder that the paths are relative to; none leads out of it, by `..` or by a link.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real_root = root.resolve()
        self._inside: set[Path] = set()  # folders known to lie under the root

    def find(self, row: Row, column: str, text: str) -> Path:
        """Return the existing file or folder that a row names in a column.

        Raises:
            UnsafePathError: if the path is absolute, or leads out of the root.
            MissingFilesError: if there is none.
        """
        path = self.root / self._checked(row, column, text)
        self._check_inside(row, column, path)
        if not path.exists():
            hint = "; write / between folders" if "\\" in text else ""
            raise MissingFilesError(
                f"the {column} {path} is missing: add it or drop the row ({what_is_there(path)}{hint})"
            )
        return path

    def list_pictures(self, row: Row, folder: Path, suffixes: Sequence[str]) -> list[Path]:
        """List a folder's pictures in the natural order of their names: 2.jpg comes before 10.jpg."""
        paths = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith(".")]
        if not paths:
            raise MissingFilesError(f"{folder} holds no pictures ({', '.join(suffixes)}): add them or drop the row")
        for path in paths:
            if path.is_symlink():
                self._check_inside(row, "picture", path)
        return sorted(paths, key=natural_key)

    def name(self, path: Path) -> str:
        """Return a path relative to the root, with / between folders."""
        return path.relative_to(self.root).as_posix()

    def _checked(self, row: Row, column: str, text: str) -> str:
        if "\0" in text:
            raise UnsafePathError(f"{row} has the {column} {text!r}, which is no path: fix it")
        if PurePosixPath(text).is_absolute() or PureWindowsPath(text).drive or PureWindowsPath(text).root:
            raise UnsafePathError(
                f"{row} has the absolute path {text!r} as {column}: write it relative to {self.root}, and put the "
                "manifest into a folder above all files that it names"
            )
        if ".." in PurePosixPath(text).parts or ".." in PureWindowsPath(text).parts:
            raise UnsafePathError(
                f"{row} has the {column} {text!r}, which leads out of its folder: put the manifest into a folder above "
                "all files that it names, and write paths without .."
            )
        return text

    def _check_inside(self, row: Row, column: str, path: Path) -> None:
        if path.parent in self._inside and not path.is_symlink():
            return
        real_path = path.resolve()
        if not real_path.is_relative_to(self._real_root):
            raise UnsafePathError(
                f"{row} has the {column} {path}, a link to {real_path} outside {self._real_root}: copy the file in, or "
                "put the manifest into the folder that really holds it"
            )
        self._inside.add(path.parent)


@dataclasses.dataclass(frozen=True)
class _Pictures:
    """The pictures of a clip as a sample has them.

    Attributes:
        name: name of the clip: its video, folder or first picture relative to the root.
        timeline: all pictures, and which of them are frames.
        rate: frames a second of the sample's frames.
        frame_paths: files of the frames; empty for a video.
        video: the video file; None for pictures that are files.
        facts: facts about the video.
    """

    name: str
    timeline: Timeline
    rate: float
    frame_paths: tuple[str, ...] = ()
    video: Path | None = None
    facts: VideoFacts | None = None

    def size(self) -> tuple[int, int]:
        """Return (height, width) of a frame in pixels."""
        if self.facts is not None:
            return self.facts.size
        width, height = read_frame_size(self.frame_paths[0])
        return height, width


class ClipBuilder:
    """Makes the samples of a manifest's rows.

    Args:
        paths: finder of files.
        fps: frames a second, unless a row says otherwise.
        num_frames: largest number of frames of a clip, evenly spaced from the first to the last; None for all.
        mask_cache: folder of masks as PNG files; None for the usual one.
        frame_cache: folder of decoded frames; None to decode a video whenever its clip is read.
    """

    def __init__(
        self,
        paths: ClipPaths,
        *,
        fps: float = 1.0,
        num_frames: int | None = 10,
        mask_cache: FilePath | None = None,
        frame_cache: FilePath | None = None,
    ) -> None:
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"num_frames is {num_frames}: expected a positive number, or None for all")
        if not fps > 0:
            raise ValueError(f"fps is {fps}: expected a positive number of frames a second")
        self.paths, self.fps, self.num_frames = paths, fps, num_frames
        self.mask_cache = cache_folder("masks") if mask_cache is None else Path(mask_cache)
        self.frame_cache = None if frame_cache is None else os.fspath(frame_cache)
        self.video_cache = cache_folder("videos")

    def __call__(self, row: ManifestRow) -> AVSample:
        """Make a row's sample; its masks are written as PNG files where they are none.

        Raises:
            MissingFilesError: if a file is missing, or a video cannot be read.
            DatasetError: naming the row, if its masks cannot be used or its paths lead out of the root.
        """
        try:
            pictures = self._pictures(row)
            return AVSample(
                uid=row.uid,
                row=row.row,
                split=row.split,
                media_id=pictures.name if row.fps is None else f"{pictures.name}@{row.fps:g}fps",
                category=row.category,
                reference=row.reference,
                fps=pictures.rate,
                frame_paths=pictures.frame_paths,
                audio_path=self._sound(row, pictures),
                mask_paths=self._masks(row, pictures),
                reference_type=row.reference_type,
                chain=row.chain,
                seen=row.seen,
                heard=row.heard,
                origin=row.origin,
                choices=row.choices,
                answer=row.answer,
                video_path=None if pictures.video is None else str(pictures.video),
                frame_times=() if pictures.video is None else pictures.timeline.kept,
                sampled_fps=None if pictures.rate == (row.fps or self.fps) else row.fps or self.fps,
                frame_cache=None if pictures.video is None else self.frame_cache,
                extra=row.extra,
            )
        except MediaError as error:
            raise MissingFilesError(str(error)) from error

    def _pictures(self, row: ManifestRow) -> _Pictures:
        if row.video is not None:
            path = self.paths.find(row, "video", row.video)
            return self._files(row, [path]) if path.suffix.lower() in PICTURE_SUFFIXES else self._video(row, path)
        if row.frames is None:
            assert row.audio is not None  # checked when the row was read
            return _Pictures(row.audio, Timeline((), (), (), 1 / self.fps), row.fps or self.fps)
        if not isinstance(row.frames, str):
            return self._files(row, [self.paths.find(row, "frames", text) for text in row.frames])
        path = self.paths.find(row, "frames", row.frames)
        if path.is_file():
            return self._files(row, [path])
        return self._files(row, self.paths.list_pictures(row, path, PICTURE_SUFFIXES), folder=path)

    def _video(self, row: ManifestRow, path: Path) -> _Pictures:
        facts = read_video_facts(path, self.video_cache)
        fps = row.fps or self.fps
        sampled = facts.sampled_times(fps)
        kept = [sampled[index] for index in evenly_spaced(len(sampled), self.num_frames)]
        timeline = Timeline(tuple(kept), tuple(sampled), facts.picture_times, 1 / fps)
        return _Pictures(self.paths.name(path), timeline, rate_of(kept, fps), video=path, facts=facts)

    def _files(self, row: ManifestRow, files: Sequence[Path], *, folder: Path | None = None) -> _Pictures:
        check_upright(files[0])
        fps = row.fps or self.fps
        times = [index / fps for index in range(len(files))]
        kept = evenly_spaced(len(files), self.num_frames)
        kept_times = [times[index] for index in kept]
        names = tuple(map(self.paths.name, files))
        timeline = Timeline(tuple(kept_times), tuple(times), tuple(times), 1 / fps, names)
        name = names[0] if folder is None else self.paths.name(folder)
        frame_paths = tuple(str(files[index]) for index in kept)
        return _Pictures(name, timeline, rate_of(kept_times, fps), frame_paths)

    def _sound(self, row: ManifestRow, pictures: _Pictures) -> str | None:
        """Return the sound's file: the row's own, else the video that has a track, else None."""
        if row.audio is not None:
            return str(self.paths.find(row, "audio", row.audio))
        return str(pictures.video) if pictures.facts is not None and pictures.facts.has_sound else None

    def _masks(self, row: ManifestRow, pictures: _Pictures) -> tuple[str, ...]:
        if row.masks is None or row.masks == EMPTY_MASKS:
            return ()
        if not pictures.timeline.kept:
            raise DatasetError(f"{row} has masks, but no frames: give the clip's video or frames")
        try:
            masks = self._read_masks(row, pictures)
        except UnsafePathError:
            raise
        except ValueError as error:
            raise DatasetError(f"{row}: {error}") from error
        if not any(masks):
            times = ", ".join(f"{time:g}" for time in pictures.timeline.kept[:5])
            raise DatasetError(
                f"{row} has masks, but none lies within {pictures.timeline.step / 2:g} s of a sampled frame ({times} "
                "... s): check their times, which count from the first picture, or sample more frames by fps"
            )
        return masks

    def _read_masks(self, row: ManifestRow, pictures: _Pictures) -> tuple[str, ...]:
        if not isinstance(row.masks, str):
            files = [None if text is None else self._png(row, text) for text in row.masks or ()]
            return png_masks(files, pictures.timeline)
        path = self.paths.find(row, "masks", row.masks)
        if path.is_dir():
            found = self.paths.list_pictures(row, path, MASK_SUFFIXES)
            return png_masks([str(file) for file in found], pictures.timeline, stems=[file.stem for file in found])
        suffix = path.suffix.lower()
        if suffix in MASK_SUFFIXES:
            return png_masks([str(path)], pictures.timeline)
        if suffix == ".json":
            names = (row.reference, row.category or None, row.masks_category)
            read = functools.partial(coco_masks, names=names)
            return self._remembered(path, pictures, names, read)
        if suffix == ".npz":
            return self._remembered(path, pictures, (), npz_masks)
        raise ValueError(
            f'masks is {row.masks!r}: expected COCO JSON (.json), PNG files, their folder, .npz, or "{EMPTY_MASKS}"'
        )

    def _remembered(
        self, path: Path, pictures: _Pictures, names: Sequence[str | None], read: Callable[..., tuple[str, ...]]
    ) -> tuple[str, ...]:
        """Return the mask files of a COCO or npz file, which is read where it, or what is asked of it, is new."""
        size, timeline = pictures.size(), pictures.timeline
        asked = [list(names), list(size), dataclasses.astuple(timeline)]
        make = functools.partial(read, path, timeline, size=size, folder=self.mask_cache)
        return remembered(path, asked, self.mask_cache, make)

    def _png(self, row: ManifestRow, text: str) -> str:
        path = self.paths.find(row, "masks", text)
        if path.suffix.lower() not in MASK_SUFFIXES:
            raise ValueError(f"the list of masks has {text!r}: expected PNG files")
        return str(path)


def rate_of(times: Sequence[float], fps: float) -> float:
    """Return the mean rate of frames at some times, in frames a second; `fps` for one frame.

    It is `fps` itself where no frame was left out.
    """
    if len(times) < 2:
        return fps
    rate = (len(times) - 1) / (times[-1] - times[0])
    return fps if abs(rate - fps) < TIME_TOLERANCE * fps else rate


def natural_key(path: Path) -> tuple[tuple[bool, int, str], ...]:
    """Key of a name that compares the numbers in it as numbers."""
    parts = re.split(r"(\d+)", path.name)
    return tuple((part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts)
