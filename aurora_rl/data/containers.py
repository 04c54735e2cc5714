"""Video and sound files opened by PyAV: the choice of the tracks that play, and limits of decoding.

The claims of a file's header are not trusted: lengths, sizes and time stamps are checked during decoding.
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
MAX_CLIP_PIXELS = 512_000_000  # in all frames of a clip, 1.5 GB as RGB
MAX_IMAGE_PIXELS = 64_000_000  # one frame or mask; 8K video is 33 million
MAX_SECONDS = 3600  # of audio or video
MAX_SAMPLING_RATE = 192_000
MAX_CHANNELS = 64
MAX_TRACKS = 100
MAX_PACKET_SAMPLES = 4_000_000  # in one packet of sound; FLAC has the longest common packets, 65,535
TIME_TOLERANCE = 1e-6  # seconds; time stamps are rounded to the container's time base

# Decoding is bounded by the file's own time and size. An honest second of 8K at 60 pictures stays below these limits,
# and so does a byte of a screen recording, whose still pictures take a few dozen bytes each.
FREE_PACKETS = 10_000
PACKETS_A_SECOND = 2_000
FREE_PIXELS = 4_000_000_000
PIXELS_A_SECOND = 2_000_000_000
PIXELS_A_BYTE = 100_000

# Demuxers of self-contained files. Playlists (hls, dash, concat) are left out, since they open other files and URLs.
VIDEO_FORMATS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "ogg", "flv")
#: Demuxers of sounds, which may hold a cover; open_video accepts them, so that the error can say "no video".
SOUND_FORMATS = ("mp3", "flac", "aac", "wav", "aiff")

#: Tracks that players play only on request: a cover, a preview, a director's comment, a description of scenes.
NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails
FOR_SOME_ALONE = Disposition.comment | Disposition.hearing_impaired | Disposition.visual_impaired | Disposition.karaoke

MediaKind = Literal["video", "audio"]
TRACK_NAMES = {"video": "video", "audio": "sound"}


class MediaError(ValueError):
    """A clip's file is missing, unreadable, or disagrees with the clip's other files."""


def check_clip_pixels(num_pixels: int, path: FilePath) -> None:
    """Refuse a clip whose frames up to `path` hold more than `MAX_CLIP_PIXELS` pixels together."""
    if num_pixels > MAX_CLIP_PIXELS:
        raise MediaError(
            f"the frames up to {path} have {num_pixels} pixels together: the limit is {MAX_CLIP_PIXELS}, "
            "use fewer or smaller frames"
        )


def check_is_file(path: FilePath) -> None:
    """Refuse a path that is no plain file.

    Raises:
        MediaError: naming the path.
    """
    if not os.path.isfile(path):  # also refuses pipes and devices, which would block
        raise MediaError(f"the file {path} does not exist or is no plain file: restore it")


def open_container(path: FilePath, formats: Sequence[str]) -> av.container.InputContainer:
    """Open a file by one of these demuxers; PyAV raises `av.FFmpegError` where none fits.

    Raises:
        NotPlainFileError: if it is a pipe or a device, which would block.
    """
    check_plain_file(path)
    # With an absolute path, a file name such as "concat:a" is not read as a protocol.
    options = {
        "format_whitelist": ",".join(formats),
        "protocol_whitelist": "file",
        "max_streams": str(MAX_TRACKS),
        "max_pixels": str(MAX_IMAGE_PIXELS),
        "max_samples": str(MAX_PACKET_SAMPLES),
    }
    return av.open(os.path.abspath(path), options=options)


def open_video(path: FilePath) -> av.container.InputContainer:
    """Open a file of `VIDEO_FORMATS`, or a sound without video; PyAV raises `av.FFmpegError` where it is neither."""
    return open_container(path, (*VIDEO_FORMATS, *SOUND_FORMATS))


def playing_track(container: av.container.InputContainer, kind: MediaKind) -> Any:
    """Choose the track of a kind that players play: the default one, else the first; None where there is none.

    A cover is no video. A track for some viewers only, or one that cannot be decoded, is chosen only if there is no
    other.
    """
    return min(_tracks(container, kind), key=_rank, default=None)


def note_of_tracks(container: av.container.InputContainer, kind: MediaKind) -> str | None:
    """Return a note for the user if a file has several tracks of a kind, else None."""
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
    """Turn PyAV's errors about damage into a `MediaError` that names the file."""
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
    """Decode the frames of a track, whose number is limited by the packets' time.

    Args:
        container: the container, just opened.
        stream: one of its tracks.
        path: path of the file, for errors.
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
    """Yield packets, and refuse a file that has absurdly many for their time."""
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
    """Return the time of a packet in seconds; 0 where it has none."""
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
    """The number of pixels decoded from a file, limited by the file's time and size.

    Attributes:
        path: the file.
        pixels: number of pixels decoded so far.
    """

    path: FilePath
    pixels: int = 0

    def __post_init__(self) -> None:
        self._by_size = FREE_PIXELS + PIXELS_A_BYTE * os.path.getsize(self.path)

    def spend(self, pixels: int, seconds: float) -> None:
        """Count one more picture, shown so many seconds after the first.

        Raises:
            MediaError: if the file now has more pixels than an honest one.
        """
        self.pixels += pixels
        limit = min(self._by_size, FREE_PIXELS + int(PIXELS_A_SECOND * max(seconds, 0.0)))
        if self.pixels > limit:
            raise MediaError(
                f"{self.path} has {self.pixels} pixels in its first {seconds:.1f} s: the limit for a file of its size "
                f"is {limit}, scale it down or re-encode it"
            )
