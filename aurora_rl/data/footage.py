"""A clip as a user has it, a video file or frames with a sound beside them, read as a stream and never whole.

Where a benchmark's `AVSample` names files that were cut for the model, nothing is cut here yet: `Footage.sampled` gives
the pictures at the rate that the model was trained with, `Footage.pictures` all there are. Pictures larger than
`max_side` are scaled down while they are decoded.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Sequence

import av
import numpy as np
from av.video.reformatter import Interpolation
from PIL import Image, ImageOps, UnidentifiedImageError

from aurora_rl.data.media import (
    FRAME_FORMATS,
    MAX_IMAGE_PIXELS,
    MAX_SECONDS,
    SAMPLING_RATE,
    TIME_TOLERANCE,
    FilePath,
    MediaError,
    check_is_file,
    check_video_frame,
    decode_audio,
    frames_on_screen,
    open_video,
    read_picture,
    read_waveform,
)

#: Longest side, in pixels, that pictures are brought down to; Ref-AVSBench's have it.
MAX_SIDE = 1280
#: Seconds of sound below which there is nothing to hear.
SHORTEST_SOUND = 0.1
#: Seconds that a video may end before its header says.
MISSING_END = 0.5

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
        name: what errors and results call it.
        own_size: (height, width) in pixels of the upright pictures as they are stored.
        frame_size: (height, width) of the pictures as they are given, at most `max_side`.
        waveform: (N,) float32 in [-1, 1], mono, 16 kHz, from the first picture on; None for a clip without sound.
        sound_path: the file that the sound comes from; None where it comes from none.
        sound_start: when that file's sound begins, in seconds after the first picture.
        notes: what a user should know of how the clip was read; more may come while it is read.
    """

    def __init__(self, name: str, own_size: tuple[int, int], *, max_side: int) -> None:
        self.name = name
        self.own_size = own_size
        self.frame_size = limited_size(own_size, max_side)
        self.waveform: np.ndarray | None = None
        self.sound_path: FilePath | None = None
        self.sound_start = 0.0
        self.notes: list[str] = []

    @abc.abstractmethod
    def pictures(self) -> Iterator[Picture]:
        """Every picture, in order of time."""

    @abc.abstractmethod
    def sampled(self, fps: float) -> Iterator[Picture]:
        """The pictures on screen at 0, 1 / fps, 2 / fps ... seconds after the first one."""

    def take_sound(self, waveform: np.ndarray | None, path: FilePath | None) -> None:
        """Give the clip its sound, unless there is nothing in it to hear."""
        if waveform is None:
            self._note("there is no sound: answered by the pictures alone")
        elif len(waveform) < SHORTEST_SOUND * SAMPLING_RATE:
            self._note(f"{len(waveform) / SAMPLING_RATE:.3f} s of sound are too short: answered by the pictures alone")
        else:
            self.waveform, self.sound_path = waveform, path

    def _note(self, text: str) -> None:
        if text not in self.notes:  # a clip may be read twice
            self.notes.append(text)


def open_footage(
    video: FilePath | Sequence[Frame],
    *,
    audio: FilePath | np.ndarray | None = None,
    fps: float = 1.0,
    max_side: int = MAX_SIDE,
) -> Footage:
    """A clip to be read.

    Args:
        video: a video file, one still image, or F frames in time order: image files, PIL images or arrays (H, W, 3)
            uint8, all of one size.
        audio: a sound file, or (N,) float32 in [-1, 1] at 16 kHz; None for the video's own sound.
        fps: frames a second of given frames; a video file knows its own.
        max_side: longest side of the pictures in pixels; larger ones are scaled down.

    Raises:
        MediaError: naming the file, if something cannot be read.
    """
    if isinstance(video, (str, os.PathLike)):
        footage: Footage = (
            _FrameFootage([video], fps=fps, max_side=max_side)
            if _is_image(video)
            else (_VideoFootage(video, max_side=max_side))
        )
    else:
        footage = _FrameFootage(video, fps=fps, max_side=max_side)
    if isinstance(audio, np.ndarray):
        footage.take_sound(_checked_waveform(audio), None)
    elif audio is not None:
        footage.take_sound(read_waveform(audio), audio)
    elif isinstance(footage, _VideoFootage):
        footage.take_sound(footage.own_sound(), footage.path)
    else:
        footage.take_sound(None, None)
    return footage


def limited_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """(height, width) brought down to a longest side of `max_side`, never up."""
    if max_side < 1:
        raise ValueError(f"max_side is {max_side}: give a positive number of pixels")
    scale = min(1.0, max_side / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


class _VideoFootage(Footage):
    """A video file."""

    def __init__(self, path: FilePath, *, max_side: int) -> None:
        self.path = path
        check_is_file(path)
        with self._reading() as container:
            if not container.streams.video:
                raise MediaError(f"{path} has no video stream: give a video, or frames beside this sound")
            first = next(container.decode(container.streams.video[0]), None)
            if first is None:
                raise MediaError(f"the video {path} has no frames: replace the file")
            check_video_frame(first, path)
            self._start = first.time
        super().__init__(os.path.basename(path), _upright_size(first), max_side=max_side)

    def pictures(self) -> Iterator[Picture]:
        with self._reading() as container:
            for frame in container.decode(container.streams.video[0]):
                check_video_frame(frame, self.path)
                time = frame.time - self._start
                if time > MAX_SECONDS:
                    raise MediaError(f"{self.path} is longer than {MAX_SECONDS} s: cut it into clips")
                yield Picture(time, self._pixels(frame))

    def sampled(self, fps: float) -> Iterator[Picture]:
        with self._reading() as container:
            number = 0
            for frame in frames_on_screen(container, self.path, fps=fps):
                yield Picture(number / fps, self._pixels(frame))
                number += 1
            self._note_missing_end(container, number / fps)

    def own_sound(self) -> np.ndarray | None:
        """The first audio track from the first picture on; None where there is none."""
        with self._reading() as container:
            if not container.streams.audio:
                return None
            stream = container.streams.audio[0]
            start = _seconds(stream.start_time, stream)
            waveform = decode_audio(container, self.path)
        self.sound_start = start - self._start
        late = round(self.sound_start * SAMPLING_RATE)
        silence = np.zeros(min(max(late, 0), MAX_SECONDS * SAMPLING_RATE), dtype=np.float32)
        return np.concatenate([silence, waveform[max(-late, 0) :]])

    @contextlib.contextmanager
    def _reading(self) -> Iterator[av.container.InputContainer]:
        """The opened file; damage that shows while it is decoded is a `MediaError`."""
        try:
            with open_video(self.path) as container:
                yield container
        except MediaError:
            raise
        except (av.FFmpegError, ValueError) as error:
            raise MediaError(f"cannot read the video {self.path}: {error}; replace or re-encode it") from error

    def _pixels(self, frame: av.VideoFrame) -> np.ndarray:
        if _upright_size(frame) != self.own_size:
            raise MediaError(f"the video {self.path} changes its size: re-encode it to one size")
        # Phones store upright video sideways and note the rotation, which is counter-clockwise like np.rot90's.
        turns = round(frame.rotation / 90)
        height, width = self.frame_size if turns % 2 == 0 else self.frame_size[::-1]
        if self.frame_size == self.own_size:
            pixels = frame.to_ndarray(format="rgb24")
        else:  # in one go from the codec's pixels, so that a large picture never exists as RGB
            small = frame.reformat(width=width, height=height, format="rgb24", interpolation=Interpolation.AREA)
            pixels = small.to_ndarray()
        return np.ascontiguousarray(np.rot90(pixels, k=turns))

    def _note_missing_end(self, container: av.container.InputContainer, seconds: float) -> None:
        """Say so where neither pictures, which take so many seconds, nor sound reach the end that the header tells."""
        promised = (container.duration or 0) / av.time_base
        if self.waveform is not None:
            seconds = max(seconds, len(self.waveform) / SAMPLING_RATE)
        if promised - seconds > max(MISSING_END, 0.1 * promised):
            self._note(f"the file ends after {seconds:.1f} s of the {promised:.1f} s that it promises: it is cut off")


class _FrameFootage(Footage):
    """Pictures that lie there one by one, as files or in memory."""

    def __init__(self, frames: Sequence[Frame], *, fps: float, max_side: int) -> None:
        if not len(frames):
            raise MediaError("there are no frames: give at least one")
        if not fps > 0 or not math.isfinite(fps):
            raise ValueError(f"fps is {fps}: give a positive number of frames a second")
        if len(frames) / fps > MAX_SECONDS:
            raise MediaError(f"{len(frames)} frames at {fps:g} a second are more than {MAX_SECONDS} s: give fewer")
        self.frames = frames
        self.fps = fps
        height, width = _read_frame(frames[0], "frame 0").shape[:2]
        super().__init__(_frames_name(frames), (height, width), max_side=max_side)

    def pictures(self) -> Iterator[Picture]:
        for index in range(len(self.frames)):
            yield self._picture(index, index / self.fps)

    def sampled(self, fps: float) -> Iterator[Picture]:
        number = 0
        while (index := math.floor(number / fps * self.fps + TIME_TOLERANCE)) < len(self.frames):
            yield self._picture(index, number / fps)
            number += 1

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


def _seconds(ticks: int | None, stream: av.stream.Stream) -> float:
    return 0.0 if ticks is None or stream.time_base is None else float(ticks * stream.time_base)


def _upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    return (frame.width, frame.height) if round(frame.rotation / 90) % 2 else (frame.height, frame.width)


def _is_image(path: FilePath) -> bool:
    """Whether a file is a still image, by its header."""
    check_is_file(path)
    try:
        with Image.open(path, formats=FRAME_FORMATS):
            return True
    except UnidentifiedImageError:
        return False
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return True  # an image that is broken; reading it says how


def _frames_name(frames: Sequence[Frame]) -> str:
    first = frames[0]
    return os.path.basename(first) if isinstance(first, (str, os.PathLike)) else f"{len(frames)} frames"


def _read_frame(frame: Frame, name: str) -> np.ndarray:
    """(H, W, 3) uint8."""
    if isinstance(frame, (str, os.PathLike)):
        return read_picture(frame)
    if isinstance(frame, Image.Image):
        return np.asarray(ImageOps.exif_transpose(frame).convert("RGB"))
    if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != np.uint8 or not 0 < frame.size <= 3 * MAX_IMAGE_PIXELS:
        raise MediaError(f"{name} is {frame.shape} {frame.dtype}: expected (H, W, 3) uint8")
    return frame


def _checked_waveform(waveform: np.ndarray) -> np.ndarray:
    if waveform.ndim != 1 or not np.issubdtype(waveform.dtype, np.floating) or not len(waveform):
        raise MediaError(f"the sound is {waveform.shape} {waveform.dtype}: expected (N,) float in [-1, 1] at 16 kHz")
    if not np.isfinite(waveform).all() or np.abs(waveform).max() > 1:
        raise MediaError("the sound has values outside [-1, 1]: scale it")
    return waveform.astype(np.float32)
