"""A user's clip, a video file or frames with a sound, is read as a stream and never whole.

The files of a benchmark's `AVSample` were prepared for the model; a user's clip was not. `Footage.sampled` gives its
pictures at the model's frame rate, `Footage.pictures` gives all of them. Pictures larger than `max_side` are scaled
down while they are decoded.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from aurora_rl.data.containers import (
    MAX_IMAGE_PIXELS,
    MAX_SECONDS,
    SAMPLING_RATE,
    TIME_TOLERANCE,
    FilePath,
    MediaError,
    PixelBudget,
    bounded_packets,
    check_is_file,
    check_length,
    note_of_tracks,
    open_video,
    packet_seconds,
    playing_track,
    told_as_media_error,
)
from aurora_rl.data.media import MOVING_FORMATS, open_picture, read_picture
from aurora_rl.data.sound import SHORTEST_SOUND, ShiftedSound, Sound, mono, open_sound, open_track
from aurora_rl.data.upright import Display, display_of
from aurora_rl.data.video import frames_on_screen, timed_frames

#: Longest side of pictures in pixels, to which larger ones are scaled; that of Ref-AVSBench.
MAX_SIDE = 1280
#: Seconds that a video may end before its header says, and its sound before its pictures.
MISSING_END = 0.5
#: Shortest time in seconds that browsers accept for a picture of an animation, and the time of a shorter one.
SHORTEST_PICTURE = 0.011
SHORT_PICTURE_SHOWN = 0.1

Frame = FilePath | Image.Image | np.ndarray


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture of a clip.

    Attributes:
        time: seconds since the clip's first picture.
        pixels: (H, W, 3) uint8, RGB, upright.
    """

    time: float
    pixels: np.ndarray


class Footage(abc.ABC):
    """A clip's pictures and its sound.

    Attributes:
        name: name of the clip in errors and results.
        own_size: (height, width) of the pictures as players show them: upright, in square pixels.
        frame_size: (height, width) of the returned pictures, at most `max_side`.
        waveform: (N,) float32 in [-1, 1], mono, 16 kHz, from the first picture on; None for a clip without sound.
        sound_path: file of the sound; None where there is no file.
        sound_start: time of the file's first sound, in seconds after the first picture; less than 0 if it begins
            before the picture.
        max_seconds: longest allowed clip, in seconds.
        notes: notes for the user on how the clip was read; more may come while it is read.
    """

    def __init__(self, name: str, own_size: tuple[int, int], *, max_side: int, max_seconds: float) -> None:
        self.name = name
        self.own_size = own_size
        self.frame_size = limited_size(own_size, max_side)
        self.max_seconds = max_seconds
        self.waveform: np.ndarray | None = None
        self.sound_path: FilePath | None = None
        self.sound_start = 0.0
        self.notes: list[str] = []

    @abc.abstractmethod
    def pictures(self) -> Iterator[Picture]:
        """Yield every picture, in order of time."""

    @abc.abstractmethod
    def read_own_sound(self) -> None:
        """Use the sound of the clip's own file, if it has one."""

    @abc.abstractmethod
    def sampled(self, fps: float) -> Iterator[Picture]:
        """Yield the pictures on screen at 0, 1 / fps, 2 / fps ... seconds after the first one."""

    @contextlib.contextmanager
    def sound(self) -> Iterator[Sound | None]:
        """Open the sound as it is stored, with its own rate and channels, from the first picture on."""
        if self.waveform is None:
            yield None
        elif self.sound_path is None:
            yield _GivenSound(self.waveform)
        else:
            with self._stored_sound(self.sound_path) as sound:
                yield sound

    @contextlib.contextmanager
    def _stored_sound(self, path: FilePath) -> Iterator[Sound | None]:
        with open_sound(path) as sound:
            yield sound

    def read_sound(self, path: FilePath | None) -> None:
        """Read the clip's sound from a file."""
        if path is None:
            self.take_sound(None)
            return
        check_is_file(path)
        with self._stored_sound(path) as sound:
            waveform = None if sound is None else mono(sound, sampling_rate=SAMPLING_RATE)
            self.sound_start = sound.delay if isinstance(sound, ShiftedSound) else 0.0
        self.take_sound(waveform, path)
        for note in sound.notes if sound is not None and self.waveform is not None else ():
            self._note(note)

    def take_sound(self, waveform: np.ndarray | None, path: FilePath | None = None) -> None:
        """Set the clip's sound, unless it is missing or too short to be heard."""
        if waveform is None:
            self._note("there is no sound: answered by the pictures alone")
        elif len(waveform) < SHORTEST_SOUND * SAMPLING_RATE:
            self._note(f"{len(waveform) / SAMPLING_RATE:.3f} s of sound are too short: answered by the pictures alone")
        else:
            self.waveform, self.sound_path = waveform, path

    def note_early_end(self, seconds: float) -> None:
        """Note that the sound ends before the pictures, which take so many seconds, if it does."""
        missing = 0.0 if self.waveform is None else seconds - len(self.waveform) / SAMPLING_RATE
        if missing > MISSING_END:
            self._note(f"the sound ends {missing:.1f} s before the pictures: silence stands after it")

    def _note(self, text: str) -> None:
        if text not in self.notes:  # a clip may be read twice
            self.notes.append(text)


def open_footage(
    video: FilePath | Sequence[Frame],
    *,
    audio: FilePath | np.ndarray | None = None,
    fps: float = 1.0,
    max_side: int = MAX_SIDE,
    max_seconds: float = MAX_SECONDS,
) -> Footage:
    """Open a clip for reading.

    Args:
        video: a video file, one image, still or animated, or F frames in time order: image files, PIL images or arrays
            (H, W, 3) uint8, all of one size.
        audio: a sound file, or (N,) float32 in [-1, 1] at 16 kHz; None for the video's own sound.
        fps: rate of given frames, in frames a second; a video file has its own.
        max_side: longest side of the pictures in pixels; larger ones are scaled down.
        max_seconds: longest allowed clip in seconds; the header's length does not count.

    Raises:
        MediaError: naming the file, if something cannot be read.
    """
    footage = _open_pictures(video, fps=fps, max_side=max_side, max_seconds=max_seconds)
    if isinstance(audio, np.ndarray):
        if audio.ndim != 1 or not np.issubdtype(audio.dtype, np.floating) or not len(audio):
            raise MediaError(f"the sound is {audio.shape} {audio.dtype}: expected (N,) float in [-1, 1] at 16 kHz")
        if not np.isfinite(audio).all() or np.abs(audio).max() > 1:
            raise MediaError("the sound has values outside [-1, 1]: scale it")
        footage.take_sound(audio.astype(np.float32))
    elif audio is not None:
        footage.read_sound(audio)
    else:
        footage.read_own_sound()
    return footage


def check_footage(
    video: FilePath | Sequence[Frame], *, audio: FilePath | None = None, fps: float = 1.0, max_side: int = MAX_SIDE
) -> None:
    """Open a clip as `open_footage` would, and read its first picture and the header of its sound file alone.

    Raises:
        MediaError: naming the file, if something cannot be read.
    """
    _open_pictures(video, fps=fps, max_side=max_side, max_seconds=MAX_SECONDS)
    if audio is not None:
        check_is_file(audio)
        with open_sound(audio):
            pass


def _open_pictures(video: FilePath | Sequence[Frame], *, fps: float, max_side: int, max_seconds: float) -> Footage:
    if not isinstance(video, (str, os.PathLike)):
        return _FrameFootage(video, fps=fps, max_side=max_side, max_seconds=max_seconds)
    kind = _image_kind(video)
    if kind == "still":
        return _FrameFootage([video], fps=fps, max_side=max_side, max_seconds=max_seconds)
    if kind == "moving":
        return _AnimationFootage(video, max_side=max_side, max_seconds=max_seconds)
    return _VideoFootage(video, max_side=max_side, max_seconds=max_seconds)


def limited_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """Scale (height, width) down to a longest side of `max_side`, never up."""
    if max_side < 1:
        raise ValueError(f"max_side is {max_side}: give a positive number of pixels")
    scale = min(1.0, max_side / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


class _VideoFootage(Footage):
    """A video file."""

    def __init__(self, path: FilePath, *, max_side: int, max_seconds: float) -> None:
        self.path = path
        check_is_file(path)
        with self._reading() as container:
            stream = playing_track(container, "video")
            if stream is None:
                raise MediaError(f"{path} has no video stream: give a video, or frames beside this sound")
            first = next(timed_frames(container, path), None)
            if first is None:
                raise MediaError(f"the video {path} has no frames: replace the file")
            self._start = first.time
            own_size = display_of(first, stream, path).size
            note = note_of_tracks(container, "video")
        super().__init__(os.path.basename(path), own_size, max_side=max_side, max_seconds=max_seconds)
        if note is not None:
            self._note(note)

    def pictures(self) -> Iterator[Picture]:
        with self._reading() as container:
            for frame in timed_frames(container, self.path, max_seconds=self.max_seconds):
                yield Picture(frame.time - self._start, self._pixels(frame, playing_track(container, "video")))

    def sampled(self, fps: float) -> Iterator[Picture]:
        with self._reading() as container:
            stream = playing_track(container, "video")
            number, last, pixels = 0, None, None
            for frame in frames_on_screen(container, self.path, fps=fps, max_seconds=self.max_seconds):
                if pixels is None or frame is not last:  # a picture may be on screen for an hour
                    last, pixels = frame, self._pixels(frame, stream)
                yield Picture(number / fps, pixels)
                number += 1
        self.note_early_end(number / fps)
        self._note_missing_end(self._start + number / fps)

    def read_own_sound(self) -> None:
        self.read_sound(self.path)

    @contextlib.contextmanager
    def _stored_sound(self, path: FilePath) -> Iterator[Sound | None]:
        if path != self.path:
            with super()._stored_sound(path) as sound:
                yield sound
            return
        with open_track(path, start=self._start, max_seconds=self.max_seconds) as own:
            yield own

    @contextlib.contextmanager
    def _reading(self) -> Iterator[av.container.InputContainer]:
        """Open the file; damage found in decoding is a `MediaError`."""
        with told_as_media_error("video", self.path), open_video(self.path) as container:
            yield container

    def _pixels(self, frame: av.VideoFrame, stream: Any) -> np.ndarray:
        display: Display = display_of(frame, stream, self.path)
        if display.size != self.own_size:
            raise MediaError(f"the video {self.path} changes its size: re-encode it to one size")
        return display.pixels(frame, self.frame_size)

    def _note_missing_end(self, reached: float) -> None:
        """Note that the file is truncated if neither the pictures nor another track reach the end in its header."""
        with self._reading() as container:
            promised = (container.duration or 0) / av.time_base
            slack = max(MISSING_END, 0.1 * promised)
            start = (container.start_time or 0) / av.time_base
            # Matroska's header holds the end in the file's own time, others the length from the first track's start.
            is_end = "matroska" in container.format.name
            end = promised if is_end else promised + start
            if end - reached <= slack:
                return
            for packet in bounded_packets(container.demux(), self.path):
                if packet.pts is not None:
                    seconds = float((packet.duration or 0) * packet.time_base)
                    reached = max(reached, packet_seconds(packet) + seconds)
                    if end - reached <= slack:
                        return
        if end - reached > slack:
            self._note(f"the file ends after {reached:.1f} s of the {end:.1f} s that it promises: it is cut off")


class _AnimationFootage(Footage):
    """An animated GIF, WebP or PNG: each picture once, for its own time."""

    def __init__(self, path: FilePath, *, max_side: int, max_seconds: float) -> None:
        self.path = path
        with open_picture(path, MOVING_FORMATS) as image:
            width, height = image.size
        super().__init__(os.path.basename(path), (height, width), max_side=max_side, max_seconds=max_seconds)

    def read_own_sound(self) -> None:
        self.read_sound(None)

    def pictures(self) -> Iterator[Picture]:
        for picture, _ in self._timed():
            yield picture

    def sampled(self, fps: float) -> Iterator[Picture]:
        number, end = 0, 0.0
        for picture, end in self._timed():
            while number == 0 or number / fps < end - TIME_TOLERANCE:
                yield Picture(number / fps, picture.pixels)
                number += 1
        self.note_early_end(end)

    def _timed(self) -> Iterator[tuple[Picture, float]]:
        """Yield each picture and the time when it leaves the screen."""
        time, budget, number = 0.0, PixelBudget(self.path), 0
        with open_picture(self.path, MOVING_FORMATS) as image:
            while True:
                try:
                    image.seek(number)
                except EOFError:
                    break
                budget.spend(image.width * image.height, time)
                picture = image.convert("RGB")
                if self.frame_size != self.own_size:
                    height, width = self.frame_size
                    picture = picture.resize((width, height), Image.Resampling.BOX)
                pixels = np.asarray(picture)
                asked = float(image.info.get("duration", 0)) / 1000
                end = time + (asked if asked >= SHORTEST_PICTURE else SHORT_PICTURE_SHOWN)
                check_length(end, self.path, max_seconds=self.max_seconds)
                yield Picture(time, pixels), end
                time, number = end, number + 1
            promised = getattr(image, "n_frames", 1)
            if number < promised:
                raise MediaError(f"{self.path} has {number} pictures of {promised}: replace the file")


class _FrameFootage(Footage):
    """Single pictures, as files or in memory."""

    def __init__(self, frames: Sequence[Frame], *, fps: float, max_side: int, max_seconds: float) -> None:
        if not len(frames):
            raise MediaError("there are no frames: give at least one")
        if not fps > 0 or not math.isfinite(fps):
            raise ValueError(f"fps is {fps}: give a positive number of frames a second")
        if len(frames) / fps > max_seconds:
            raise MediaError(f"{len(frames)} frames at {fps:g} a second are more than {max_seconds:g} s: give fewer")
        self.frames = frames
        self.fps = fps
        height, width = _read_frame(frames[0], "frame 0").shape[:2]
        first = frames[0]
        name = os.path.basename(first) if isinstance(first, (str, os.PathLike)) else f"{len(frames)} frames"
        super().__init__(name, (height, width), max_side=max_side, max_seconds=max_seconds)

    def read_own_sound(self) -> None:
        self.read_sound(None)

    def pictures(self) -> Iterator[Picture]:
        for index in range(len(self.frames)):
            yield self._picture(index, index / self.fps)

    def sampled(self, fps: float) -> Iterator[Picture]:
        number = 0
        while (index := math.floor(number / fps * self.fps + TIME_TOLERANCE)) < len(self.frames):
            yield self._picture(index, number / fps)
            number += 1
        if len(self.frames) > 1:  # a still picture lasts as long as its sound
            self.note_early_end(len(self.frames) / self.fps)

    def _picture(self, index: int, time: float) -> Picture:
        pixels = _read_frame(self.frames[index], f"frame {index}")
        if pixels.shape[:2] != self.own_size:
            height, width = self.own_size
            raise MediaError(
                f"frame {index} has {pixels.shape[1]}x{pixels.shape[0]} pixels, but frame 0 {width}x{height}: "
                "give all frames of a clip one size"
            )
        if self.frame_size != self.own_size:
            height, width = self.frame_size
            pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))
        return Picture(time, pixels)


class _GivenSound:
    """A waveform that was given as an array."""

    rate = SAMPLING_RATE
    layout: str | None = "mono"
    start = 0.0
    path: FilePath = "the given sound"

    def __init__(self, waveform: np.ndarray) -> None:
        self.notes: list[str] = []
        self._waveform = waveform

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield (1, n) float32, block by block."""
        for start in range(0, len(self._waveform), SAMPLING_RATE):
            yield self._waveform[None, start : start + SAMPLING_RATE]


def _image_kind(path: FilePath) -> str | None:
    """Return `still` or `moving` for an image, by its header; None for other files."""
    check_is_file(path)
    try:
        with Image.open(path, formats=MOVING_FORMATS) as image:
            return "moving" if image.format == "GIF" or getattr(image, "is_animated", False) else "still"
    except UnidentifiedImageError:
        return None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return "still"  # a broken image; the reading raises the error


def _read_frame(frame: Frame, name: str) -> np.ndarray:
    """Read a frame as (H, W, 3) uint8."""
    if isinstance(frame, (str, os.PathLike)):
        return read_picture(frame)
    if isinstance(frame, Image.Image):
        return np.asarray(ImageOps.exif_transpose(frame).convert("RGB"))
    if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != np.uint8 or not 0 < frame.size <= 3 * MAX_IMAGE_PIXELS:
        raise MediaError(f"{name} is {frame.shape} {frame.dtype}: expected (H, W, 3) uint8")
    return frame
