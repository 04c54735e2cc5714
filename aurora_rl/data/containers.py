"""Video and sound files opened by PyAV: which of their tracks play, and a bound on what is decoded of them.

A file's claims are not believed: lengths, sizes and time stamps are checked against what is decoded, while that is
done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import av
from av.stream import Disposition

from aurora_rl.files.plain import check_plain_file

FilePath = str | os.PathLike[str]

SAMPLING_RATE = 16_000  # Hz, what the audio towers of the supported language models expect
MAX_IMAGE_PIXELS = 64_000_000  # one frame or mask; 8K video is 33 million
MAX_SECONDS = 3600  # of audio or video
MAX_SAMPLING_RATE = 192_000
MAX_CHANNELS = 64
MAX_TRACKS = 100
MAX_PACKET_SAMPLES = 4_000_000  # of one packet of sound; those of FLAC, the longest common ones, have 65,535
TIME_TOLERANCE = 1e-6  # seconds; time stamps are rounded to the container's time base

# What is decoded is bounded by the file's own time and size: an honest second of 8K at 60 pictures stays below these,
# and so does a byte of a screen recording, whose still pictures take a few dozen bytes each.
FREE_PACKETS = 10_000
PACKETS_A_SECOND = 2_000
FREE_PIXELS = 4_000_000_000
PIXELS_A_SECOND = 2_000_000_000
PIXELS_A_BYTE = 100_000

# Demuxers of self-contained files. Playlists (hls, dash, concat) are left out: they open other files and addresses.
VIDEO_FORMATS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "ogg", "flv")
#: Demuxers of sounds, which may hold a cover: opened where a video is asked for, so that the answer is "no video".
SOUND_FORMATS = ("mp3", "flac", "aac", "wav", "aiff")

#: What players show or play when asked for it alone: a cover, a preview, a director's comment, a description of scenes.
NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails
FOR_SOME_ALONE = Disposition.comment | Disposition.hearing_impaired | Disposition.visual_impaired | Disposition.karaoke

MediaKind = Literal["video", "audio"]
TRACK_NAMES = {"video": "video", "audio": "sound"}


class MediaError(ValueError):
    """A clip's file is missing, unreadable, or disagrees with the clip's other files."""


def open_container(path: FilePath, formats: Sequence[str]) -> av.container.InputContainer:
    """A file of one of these demuxers; PyAV raises `av.FFmpegError` where it is none.

    Raises:
        NotPlainFileError: if it is a pipe or a device, which would be waited for.
    """
    check_plain_file(path)
    # The absolute path keeps a file name such as "concat:a" from being read as a protocol.
    options = {
        "format_whitelist": ",".join(formats),
        "protocol_whitelist": "file",
        "max_streams": str(MAX_TRACKS),
        "max_pixels": str(MAX_IMAGE_PIXELS),
        "max_samples": str(MAX_PACKET_SAMPLES),
    }
    return av.open(os.path.abspath(path), options=options)


def open_video(path: FilePath) -> av.container.InputContainer:
    """A file of `VIDEO_FORMATS`, or a sound without any video; PyAV raises `av.FFmpegError` where it is neither."""
    return open_container(path, (*VIDEO_FORMATS, *SOUND_FORMATS))


def playing_track(container: av.container.InputContainer, kind: MediaKind) -> Any:
    """The track of a kind that players play: the one flagged as default, else the first; None where there is none.

    A cover is no video. What is meant for some viewers alone, or what cannot be decoded, plays where nothing else does.
    """
    return min(_tracks(container, kind), key=_rank, default=None)


def note_of_tracks(container: av.container.InputContainer, kind: MediaKind) -> str | None:
    """What a user should know of a file with several tracks of a kind."""
    tracks = _tracks(container, kind)
    if len(tracks) < 2:
        return None
    name, chosen = TRACK_NAMES[kind], min(tracks, key=_rank)
    number = tracks.index(chosen) + 1
    return f"there are {len(tracks)} {name} tracks: number {number} is taken, which players play first"


def _tracks(container: av.container.InputContainer, kind: MediaKind) -> list[Any]:
    streams = container.streams.video if kind == "video" else container.streams.audio
    return [stream for stream in streams if not stream.disposition & NO_VIDEO]


def _rank(stream: Any) -> tuple[bool, bool, bool, int]:
    disposition = stream.disposition
    return (
        stream.codec_context is None,
        bool(disposition & FOR_SOME_ALONE),
        not disposition & Disposition.default,
        stream.index,
    )


@contextlib.contextmanager
def told_as_media_error(what: str, path: FilePath) -> Iterator[None]:
    """Damage that PyAV finds becomes a `MediaError` that names the file."""
    try:
        yield
    except MediaError:
        raise
    except (av.FFmpegError, ValueError, OSError) as error:  # PyAV raises ValueError, too: audio that changes format
        advice = "replace or re-encode it" if what == "video" else "replace the file"
        raise MediaError(f"cannot read the {what} {path}: {error}; {advice}") from error


def decoded(
    container: av.container.InputContainer, stream: Any, path: FilePath, *, is_strict: bool = False
) -> Iterator[Any]:
    """Frames of a track, bounded in number by its packets' time.

    Args:
        container: just opened.
        stream: one of its tracks.
        path: for errors.
        is_strict: whether damage that a decoder would hide is an error.
    """
    if stream.codec_context is None:
        raise MediaError(f"{path} has a {TRACK_NAMES[stream.type]} track of an unknown codec: re-encode it")
    options = {"max_pixels": str(MAX_IMAGE_PIXELS), "max_samples": str(MAX_PACKET_SAMPLES)}
    if is_strict:
        options["err_detect"] = "explode+crccheck+bitstream+buffer"
    stream.codec_context.options = options
    for packet in bounded_packets(container.demux(stream), path):
        if is_strict and packet.is_corrupt:
            raise MediaError(f"the audio {path} is damaged at {packet_seconds(packet):.2f} s: replace the file")
        yield from packet.decode()


def bounded_packets(packets: Iterator[av.Packet[Any]], path: FilePath) -> Iterator[av.Packet[Any]]:
    """Packets, as long as there are not absurdly many for their time."""
    first: float | None = None
    seconds = 0.0
    for number, packet in enumerate(packets):
        if packet.pts is not None:
            start = packet_seconds(packet)
            first = start if first is None else min(first, start)
            seconds = max(seconds, start - first)
        if number > FREE_PACKETS + PACKETS_A_SECOND * min(seconds, MAX_SECONDS):
            raise MediaError(
                f"{path} has {number} packets in its first {seconds:.1f} s: the limit is {PACKETS_A_SECOND} a second, "
                "re-encode it"
            )
        yield packet


def packet_seconds(packet: av.Packet[Any]) -> float:
    """When a packet is shown or heard; 0 where it has no time."""
    return 0.0 if packet.pts is None or packet.time_base is None else float(packet.pts * packet.time_base)


def check_sampling_rate(sampling_rate: int, path: FilePath) -> None:
    """Refuse a rate that no sound has."""
    if not 0 < sampling_rate <= MAX_SAMPLING_RATE:
        raise MediaError(
            f"the audio of {path} has {sampling_rate} Hz: the limit is {MAX_SAMPLING_RATE} Hz, resample it"
        )


def check_length(seconds: float, path: FilePath, *, max_seconds: float = MAX_SECONDS) -> None:
    """Refuse what is longer than the limit."""
    if seconds > max_seconds:
        raise MediaError(f"{path} is {seconds:.0f} s long: the limit is {max_seconds:g} s, cut it into clips")


@dataclasses.dataclass
class PixelBudget:
    """How many pixels are decoded of a file: what its time and its size leave room for.

    Attributes:
        path: the file.
        pixels: decoded so far.
    """

    path: FilePath
    pixels: int = 0

    def __post_init__(self) -> None:
        self._by_size = FREE_PIXELS + PIXELS_A_BYTE * os.path.getsize(self.path)

    def spend(self, pixels: int, seconds: float) -> None:
        """Take one more picture, shown so many seconds after the first.

        Raises:
            MediaError: if the file has more pixels by now than an honest one.
        """
        self.pixels += pixels
        limit = min(self._by_size, FREE_PIXELS + int(PIXELS_A_SECOND * max(seconds, 0.0)))
        if self.pixels > limit:
            raise MediaError(
                f"{self.path} has {self.pixels} pixels in its first {seconds:.1f} s: the limit for a file of its size "
                f"is {limit}, scale it down or re-encode it"
            )
