"""Videos as frames at a constant rate, with their sound, as players show them, within limits of size and time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import av
import numpy as np

from aurora_rl.data.containers import (
    MAX_IMAGE_PIXELS,
    MAX_SECONDS,
    SAMPLING_RATE,
    TIME_TOLERANCE,
    FilePath,
    MediaError,
    PixelBudget,
    check_clip_pixels,
    check_is_file,
    check_length,
    decoded,
    open_video,
    playing_track,
    told_as_media_error,
)
from aurora_rl.data.sound import SHORTEST_SOUND, EmptySoundError, log_notes, mono, open_track
from aurora_rl.data.upright import display_of

#: Seconds that the last picture stays on screen at least: the times of decoded pictures and of packets may differ.
LAST_PICTURE = 0.5
#: Seconds from one wanted picture to the next from which the pictures between are skipped instead of decoded.
SEEK_GAP = 5.0
#: Beginnings of the names of containers with an index of their key frames.
SEEKABLE = ("mov", "matroska")


def read_video(path: FilePath, *, fps: float, require_audio: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a video file's frames at a constant rate, and its audio.

    Frame k is the picture on screen at k / fps seconds after the first one; the file's own rate does not matter.

    Args:
        path: a video file.
        fps: rate of the result, in frames a second.
        require_audio: whether a file without audio is an error.

    Returns:
        Frames (F, H, W, 3) uint8, RGB, as players show them, and the waveform (N,) float32 in [-1, 1], mono, 16 kHz, or
        None where the file has no audio and none is required. Both start with the first picture: gaps in the sound are
        silent, and sound before the first picture is left out.

    Raises:
        MediaError: if the file cannot be read, has no video or lacks a required audio stream, or is too large.
    """
    if not fps > 0:
        raise ValueError(f"fps is {fps}: give a positive number of frames a second")
    check_is_file(path)
    with told_as_media_error("video", path):
        with open_video(path) as container:
            if playing_track(container, "video") is None:
                raise MediaError(f"{path} has no video stream: give a video, or read its audio with read_waveform")
            if require_audio and playing_track(container, "audio") is None:
                raise MediaError(
                    f"the video {path} has no audio stream: use one with sound or pass require_audio=False"
                )
            start, frames = _decode_frames(container, path, fps=fps)  # (F, H, W, 3)
        with open_track(path, start=start) as sound:
            waveform = None if sound is None else mono(sound, sampling_rate=SAMPLING_RATE)  # (N,)
    if sound is not None:
        log_notes(sound)
    return frames, waveform


def _decode_frames(container: av.container.InputContainer, path: FilePath, *, fps: float) -> tuple[float, np.ndarray]:
    """Decode frames (F, H, W, 3) at 0, 1 / fps, 2 / fps ... seconds after the first one, and return its time, too."""
    stream = playing_track(container, "video")
    frames: list[np.ndarray] = []
    start: float | None = None
    for frame in frames_on_screen(container, path, fps=fps):
        start = frame.time if start is None else start
        display = display_of(frame, stream, path)
        if frames and display.size != frames[0].shape[:2]:
            raise MediaError(f"the video {path} changes its size: re-encode it to one size")
        check_clip_pixels((len(frames) + 1) * display.size[0] * display.size[1], path)
        frames.append(display.pixels(frame, display.size))
    if start is None:
        raise MediaError(f"the video {path} has no frames: replace the file")
    return start, np.stack(frames)


def read_video_frames(path: FilePath, times: Sequence[float]) -> np.ndarray:
    """Read the pictures of a video that are on screen at some times.

    Args:
        path: a video file.
        times: F times in order, in seconds after the first picture.

    Returns:
        (F, H, W, 3) uint8, RGB, as players show them: upright, in square pixels.

    Raises:
        MediaError: if the file cannot be read, is too large, or its pictures end long before the last time.
    """
    check_is_file(path)
    try:
        return _decode_at(path, times, may_seek=True)
    except _InaccurateSeekError:
        return _decode_at(path, times, may_seek=False)


def _decode_at(path: FilePath, times: Sequence[float], *, may_seek: bool) -> np.ndarray:
    with told_as_media_error("video", path), open_video(path) as container:
        stream = playing_track(container, "video")
        if stream is None:
            raise MediaError(f"{path} has no video stream: give a video, or a sound without frames as `audio`")
        return _stack_shown(_shown_at(container, path, times, may_seek=may_seek), stream, path)


class _InaccurateSeekError(Exception):
    """A container's index leads behind the picture that was asked for."""


def _shown_at(
    container: av.container.InputContainer, path: FilePath, times: Sequence[float], *, may_seek: bool
) -> Iterator[av.VideoFrame]:
    """Yield the frame on screen at each of the times; the last frame stays for a moment."""
    may_seek = may_seek and container.format.name.startswith(SEEKABLE)
    frames = timed_frames(container, path)
    shown = next(frames, None)
    if shown is None:
        raise MediaError(f"the video {path} has no frames: replace the file")
    start, waiting, sought = shown.time, list(times), None
    while waiting:
        if may_seek and waiting[0] != sought and waiting[0] - (shown.time - start) > SEEK_GAP:
            sought = waiting[0]
            shown, frames = _seek(container, path, start + sought)
        following = next(frames, None)
        if following is None:
            break
        while waiting and waiting[0] < following.time - start - TIME_TOLERANCE:
            yield shown
            waiting.pop(0)
        shown = following
    end = shown.time - start + max(_last_frame_seconds(shown, playing_track(container, "video")), LAST_PICTURE)
    for time in waiting:
        if time > end:
            raise MediaError(
                f"the video {path} has no picture at {time:.2f} s, since they end after {end:.2f} s: it is cut off, "
                "replace the file"
            )
        yield shown


def _seek(
    container: av.container.InputContainer, path: FilePath, seconds: float
) -> tuple[av.VideoFrame, Iterator[av.VideoFrame]]:
    """Go to the last key frame before a time of the file, and return it and the frames after it.

    Raises:
        _InaccurateSeekError: if the first frame found is a later one.
    """
    stream = playing_track(container, "video")
    container.seek(int((seconds + TIME_TOLERANCE) / stream.time_base), stream=stream)
    frames = timed_frames(container, path)
    first = next(frames, None)
    if first is None or first.time > seconds + TIME_TOLERANCE:
        raise _InaccurateSeekError
    return first, frames


def _stack_shown(shown: Iterable[av.VideoFrame], stream: av.video.stream.VideoStream, path: FilePath) -> np.ndarray:
    """Convert frames to one array (F, H, W, 3) at their own size; a frame that is shown twice is converted once."""
    frames: list[np.ndarray] = []
    last: av.VideoFrame | None = None
    for frame in shown:
        if frame is not last:
            display = display_of(frame, stream, path)
            if frames and display.size != frames[0].shape[:2]:
                raise MediaError(f"the video {path} changes its size: re-encode it to one size")
            pixels = display.pixels(frame, display.size)
        check_clip_pixels((len(frames) + 1) * pixels.shape[0] * pixels.shape[1], path)
        frames.append(pixels)
        last = frame
    return np.stack(frames)


def read_video_sound(path: FilePath) -> np.ndarray | None:
    """Read a video's own sound (N,) float32 from its first picture on; None where it has none that can be heard.

    Raises:
        MediaError: if the file cannot be read, or has no pictures.
    """
    check_is_file(path)
    with told_as_media_error("video", path):
        with open_video(path) as container:
            start = _first_frame(container, path).time
        try:
            with open_track(path, start=start) as sound:
                waveform = None if sound is None else mono(sound, sampling_rate=SAMPLING_RATE)
        except EmptySoundError:
            return None
    if sound is None or waveform is None:
        return None
    if is_short := len(waveform) < SHORTEST_SOUND * SAMPLING_RATE:
        sound.notes.append(f"{len(waveform) / SAMPLING_RATE:.3f} s of sound are too short: the clip is silent")
    log_notes(sound)
    return None if is_short else waveform


def read_video_size(path: FilePath) -> tuple[int, int]:
    """Read width and height of a video's pictures in pixels, as players show them, from its first picture.

    Raises:
        MediaError: if the file cannot be read, or has no pictures.
    """
    check_is_file(path)
    with told_as_media_error("video", path), open_video(path) as container:
        frame = _first_frame(container, path)
        height, width = display_of(frame, playing_track(container, "video"), path).size
    return width, height


def _first_frame(container: av.container.InputContainer, path: FilePath) -> av.VideoFrame:
    if playing_track(container, "video") is None:
        raise MediaError(f"{path} has no video stream: give a video, or a sound without frames as `audio`")
    frame = next(timed_frames(container, path), None)
    if frame is None:
        raise MediaError(f"the video {path} has no frames: replace the file")
    return frame


def frames_on_screen(
    container: av.container.InputContainer, path: FilePath, *, fps: float, max_seconds: float = MAX_SECONDS
) -> Iterator[av.VideoFrame]:
    """Yield the frame shown at each of 0, 1 / fps, 2 / fps ... seconds until the last one leaves the screen."""
    stream = playing_track(container, "video")
    shown: av.VideoFrame | None = None
    start, num_yielded = 0.0, 0
    for frame in timed_frames(container, path, max_seconds=max_seconds):
        if shown is None:
            start, shown = frame.time, frame
        while num_yielded / fps < frame.time - start - TIME_TOLERANCE:
            yield shown
            num_yielded += 1
        shown = frame
    if shown is None:
        return
    end = shown.time - start + _last_frame_seconds(shown, stream)
    check_length(end, path, max_seconds=max_seconds)
    while num_yielded == 0 or num_yielded / fps < end - TIME_TOLERANCE:
        yield shown
        num_yielded += 1


def timed_frames(
    container: av.container.InputContainer, path: FilePath, *, max_seconds: float = MAX_SECONDS
) -> Iterator[av.VideoFrame]:
    """Yield the frames of the playing video track, each with a time, within the limits of the file's time and size.

    Raises:
        MediaError: naming the file.
    """
    stream = playing_track(container, "video")
    budget = PixelBudget(path)
    start: float | None = None
    _check_picture_size(stream.width, stream.height, path)  # before memory is allocated
    for frame in decoded(container, stream, path):
        check_video_frame(frame, path)
        start = frame.time if start is None else start
        check_length(frame.time - start, path, max_seconds=max_seconds)
        budget.spend(frame.width * frame.height, frame.time - start)
        yield frame


def check_video_frame(frame: av.VideoFrame, path: FilePath) -> None:
    """Refuse a frame of a video that has no time or too many pixels.

    Raises:
        MediaError: naming the file.
    """
    if frame.time is None:
        raise MediaError(f"the video {path} has frames without time stamps: remux it, for example to mp4")
    _check_picture_size(frame.width, frame.height, path)


def _check_picture_size(width: int, height: int, path: FilePath) -> None:
    if width * height > MAX_IMAGE_PIXELS:
        raise MediaError(
            f"the video {path} has frames of {width}x{height} pixels: the limit is {MAX_IMAGE_PIXELS} in all, scale it "
            "down"
        )


def _last_frame_seconds(frame: av.VideoFrame, stream: av.video.stream.VideoStream) -> float:
    """Return how long the last frame stays on screen: its own duration or the time to the stream's end, if less.

    One of them is not enough: a reordered (B) frame may carry another frame's duration, and the header of a truncated
    file promises an end that its pictures never reach.
    """
    candidates = []
    if frame.duration and frame.time_base:
        candidates.append(float(frame.duration * frame.time_base))
    if stream.duration and stream.time_base:
        candidates.append(float((stream.duration + (stream.start_time or 0)) * stream.time_base) - frame.time)
    if not candidates and stream.average_rate:
        candidates.append(float(1 / stream.average_rate))
    return max(min(candidates, default=0.0), 0.0)
