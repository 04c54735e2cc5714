"""What a list of samples must know of a video: size, times of its pictures, and whether it has a sound.

The times come from the packets, so that only the first picture is decoded. A file is read once: the facts are kept in
a folder of small JSON files, whose names are hashes of the video's path, size and time of change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from aurora_rl.data.containers import (
    TIME_TOLERANCE,
    FilePath,
    MediaError,
    bounded_packets,
    check_is_file,
    check_length,
    open_video,
    playing_track,
    told_as_media_error,
)
from aurora_rl.data.upright import display_of
from aurora_rl.data.video import check_video_frame, timed_frames
from aurora_rl.files.atomic import write_whole
from aurora_rl.files.fingerprint import fingerprint_values
from aurora_rl.files.plain import parse_json, read_text_file

logger = logging.getLogger(__name__)

#: Version of the files' form, a part of their names.
VERSION = 1


@dataclasses.dataclass(frozen=True)
class VideoFacts:
    """Facts about a video file.

    Attributes:
        size: (height, width) of its pictures in pixels, as players show them.
        picture_times: times of its pictures, in seconds after the first one, in order.
        end: time when the last picture leaves the screen.
        has_sound: whether there is a sound track.
    """

    size: tuple[int, int]
    picture_times: tuple[float, ...]
    end: float
    has_sound: bool

    def sampled_times(self, fps: float) -> list[float]:
        """Return 0, 1 / fps, 2 / fps ... seconds, until the last picture leaves the screen; 0 at least."""
        number = itertools.count(1)
        later = itertools.takewhile(lambda time: time < self.end - TIME_TOLERANCE, (n / fps for n in number))
        return [0.0, *later]


def read_video_facts(path: FilePath, cache: Path) -> VideoFacts:
    """Return a video's facts, from the cache if the file has not changed.

    Args:
        path: the video file.
        cache: folder of known facts; it is made if it is missing, and a folder that cannot be written is not used.

    Raises:
        MediaError: naming the file, if it is no video or cannot be read.
    """
    check_is_file(path)
    status = os.stat(path)
    digest = fingerprint_values([VERSION, os.path.realpath(path), status.st_size, status.st_mtime_ns])[:32]
    known = cache / digest[:2] / f"{digest}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a damaged file is made again
        return _from_record(parse_json(read_text_file(known)))
    facts, record = _examine(path)
    try:
        write_whole(known, json.dumps(record), is_synced=False)
    except OSError as error:
        _log_once(f"{cache} cannot be written ({error.strerror})")
    return facts


def _examine(path: FilePath) -> tuple[VideoFacts, dict[str, Any]]:
    with told_as_media_error("video", path), open_video(path) as container:
        stream = playing_track(container, "video")
        if stream is None:
            raise MediaError(f"{path} has no video stream: give a video, or a sound without frames as `audio`")
        has_sound = playing_track(container, "audio") is not None
        first, packets = _read_packets(container, stream, path)
        size = display_of(first, stream, path).size
        ticks = _picture_ticks(first, packets) or _decoded_ticks(path)
        last = max(packets, key=lambda packet: packet[0], default=(ticks[-1], 0))
        seconds = _seconds_of_last(ticks[-1], last[1], stream)
    record = {
        "size": list(size),
        "tick": [stream.time_base.numerator, stream.time_base.denominator],
        "steps": [[int(step), len(list(group))] for step, group in itertools.groupby(np.diff(ticks).tolist())],
        "last_seconds": seconds,
        "has_sound": has_sound,
    }
    facts = _from_record(record)
    check_length(facts.end, path)
    return facts, record


def _from_record(record: dict[str, Any]) -> VideoFacts:
    height, width = record["size"]
    numerator, denominator = record["tick"]
    steps = [step for step, count in record["steps"] for _ in range(count)]
    times = tuple(ticks * numerator / denominator for ticks in itertools.accumulate(steps, initial=0))
    return VideoFacts((height, width), times, times[-1] + record["last_seconds"], record["has_sound"])


def _read_packets(
    container: av.container.InputContainer, stream: Any, path: FilePath
) -> tuple[av.VideoFrame, list[tuple[int, int]]]:
    """Return the first decoded frame, and time and duration of each packet in ticks; none if one has no time."""
    packets: list[tuple[int, int]] = []
    first: av.VideoFrame | None = None
    has_times = True
    for packet in bounded_packets(container.demux(stream), path):
        if first is None:
            first = next(iter(packet.decode()), None)
        if packet.size and not packet.is_discard:
            has_times &= packet.pts is not None
            packets.append((packet.pts or 0, packet.duration or 0))
    if first is None:
        raise MediaError(f"the video {path} has no frames: replace the file")
    check_video_frame(first, path)
    return first, packets if has_times else []


def _picture_ticks(first: av.VideoFrame, packets: Sequence[tuple[int, int]]) -> list[int]:
    """Return the pictures' times in ticks, from the first decoded one on; none where packets do not tell them."""
    start = first.pts or 0
    times = sorted({time for time, _ in packets if time >= start})
    return times if times and times[0] == start else []


def _decoded_ticks(path: FilePath) -> list[int]:
    """Return the times of all pictures by decoding them, for containers whose packets have no times."""
    with open_video(path) as container:
        return sorted({frame.pts for frame in timed_frames(container, path) if frame.pts is not None})


def _seconds_of_last(ticks: int, duration: int, stream: Any) -> float:
    """Return how long the last picture stays on screen, as `video.frames_on_screen` does."""
    candidates = [float(duration * stream.time_base)] if duration else []
    if stream.duration:
        candidates.append(float((stream.duration + (stream.start_time or 0) - ticks) * stream.time_base))
    if not candidates and stream.average_rate:
        candidates.append(float(1 / stream.average_rate))
    return max(min(candidates, default=0.0), 0.0)


@functools.lru_cache(maxsize=100)
def _log_once(text: str) -> None:
    logger.warning("%s: what is known of videos is not kept; name another folder by AURORA_RL_CACHE", text)
