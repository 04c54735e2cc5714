"""Writes files as people and devices make them, and as nobody should: late starts, gaps, several tracks, damage.

write_film       a video: pictures at given times, sounds in pieces at given times, tracks, display matrix, pixel shape
write_sound      a sound file of any compressed kind, by the encoders that PyAV and libsndfile have
cuts, flips      damaged copies of a file's bytes
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from av.stream import Disposition

RATE = 16_000
ONE = 65_536  # 1 in a display matrix
UNIT = 1 << 30

#: a, b, c, d of the eight display matrices, and how NumPy makes the shown picture of the stored one.
ORIENTATIONS = {
    (1, 0, 0, 1): lambda stored: stored,
    (-1, 0, 0, 1): lambda stored: stored[:, ::-1],
    (1, 0, 0, -1): lambda stored: stored[::-1],
    (-1, 0, 0, -1): lambda stored: np.rot90(stored, 2),
    (0, 1, -1, 0): lambda stored: np.rot90(stored, -1),  # (x, y) is shown at (-y, x): clockwise
    (0, -1, 1, 0): lambda stored: np.rot90(stored, 1),
    (0, 1, 1, 0): lambda stored: stored.swapaxes(0, 1),
    (0, -1, -1, 0): lambda stored: np.rot90(stored.swapaxes(0, 1), 2),
}

#: Pieces of a sound: when each begins, in seconds, and its samples (channels, n) or (n,) at 16 kHz.
Pieces = Sequence[tuple[float, np.ndarray]]


def grey(level: int, height: int = 32, width: int = 48) -> np.ndarray:
    return np.full((height, width, 3), level, dtype=np.uint8)


def tone(seconds: float, *, frequency: float = 440.0, amplitude: float = 0.5) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(RATE * seconds)) / RATE)


def write_film(
    path: Path,
    *,
    frames: Sequence[np.ndarray] = (),
    times: Sequence[float] | None = None,
    sounds: Sequence[Pieces] = (),
    default_sound: int | None = None,
    second_video: Sequence[np.ndarray] = (),
    matrix: tuple[int, int, int, int] = (1, 0, 0, 1),
    pixel_shape: Fraction = Fraction(1),
    codec: str = "libx264",
) -> Path:
    """Encode (H, W, 3) uint8 frames, at 10 a second or at `times`, and sounds as PCM (AAC in mp4), by their times."""
    with av.open(str(path), "w") as out:
        packets: list[Any] = []
        videos = [_video(out, each, codec, matrix, pixel_shape) for each in (frames, second_video) if len(each)]
        tracks = [_sound(out, pieces, is_default=default_sound in (None, n)) for n, pieces in enumerate(sounds)]
        for video, pictures in zip(videos, (frames, second_video), strict=False):
            packets += _encoded_pictures(video, pictures, times)
        for track, pieces in zip(tracks, sounds, strict=True):
            packets += _encoded_sound(track, pieces)
        for packet in sorted(packets, key=lambda each: float(each.dts * each.time_base)):
            out.mux(packet)
    return path


def _video(out: Any, frames: Sequence[np.ndarray], codec: str, matrix: Sequence[int], pixel_shape: Fraction) -> Any:
    options = {"crf": "1", "preset": "ultrafast", "bf": "0"} if codec == "libx264" else {}
    video = out.add_stream(codec, rate=10, options=options)
    video.height, video.width = frames[0].shape[:2]
    video.pix_fmt = "yuv444p" if codec == "libx264" else "yuv420p"
    video.codec_context.time_base = Fraction(1, 1000)
    video.codec_context.sample_aspect_ratio = pixel_shape
    a, b, c, d = matrix
    if tuple(matrix) != (1, 0, 0, 1):
        video.set_display_matrix([a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, UNIT])
    return video


def _sound(out: Any, pieces: Pieces, *, is_default: bool) -> Any:
    codec = "aac" if out.format.name in ("mp4", "mov") else "pcm_s16le"
    channels = np.atleast_2d(pieces[0][1]).shape[0]
    track = out.add_stream(codec, rate=RATE, layout={1: "mono", 2: "stereo"}[channels])
    track.disposition = Disposition.default if is_default else Disposition(0)
    return track


def _encoded_pictures(video: Any, frames: Sequence[np.ndarray], times: Sequence[float] | None) -> list[Any]:
    packets = []
    for number, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = (
            round(1000 * (number / 10 if times is None else times[number])),
            Fraction(1, 1000),
        )
        packets += video.encode(frame)
    return packets + video.encode(None)


def _encoded_sound(track: Any, pieces: Pieces) -> list[Any]:
    """Packets of 0.1 s or, with AAC, of its frames; nothing is encoded in gaps."""
    packets = []
    is_pcm = track.codec_context.name.startswith("pcm")
    for start, samples in pieces:
        samples = np.atleast_2d(samples)
        size = 1600 if is_pcm else samples.shape[1]
        for first in range(0, samples.shape[1], size):
            part = np.ascontiguousarray(samples[:, first : first + size])
            if is_pcm:
                interleaved = np.ascontiguousarray((part.T * 32767).round().astype(np.int16).reshape(1, -1))
                frame = av.AudioFrame.from_ndarray(interleaved, format="s16", layout=track.layout.name)
            else:
                frame = av.AudioFrame.from_ndarray(part.astype(np.float32), format="fltp", layout=track.layout.name)
            frame.sample_rate, frame.pts = RATE, round(RATE * start) + first
            frame.time_base = Fraction(1, RATE)
            packets += track.encode(frame)
    return packets + track.encode(None)


#: Compressed kinds: suffix, muxer, encoder, rate; without a muxer libsndfile writes it.
SOUND_KINDS = {
    "mp3": ("mp3", "libmp3lame", 44_100),
    "mp3-sndfile": (None, "MPEG_LAYER_III", 16_000),
    "aac": ("adts", "aac", 44_100),
    "m4a": ("mp4", "aac", 44_100),
    "flac": ("flac", "flac", 16_000),
    "flac-sndfile": (None, "PCM_16", 16_000),
    "ogg": (None, "VORBIS", 16_000),
    "opus": ("ogg", "libopus", 48_000),
    "webm": ("webm", "libopus", 48_000),
    "mka": ("matroska", "aac", 44_100),
}
SNDFILE_FORMATS = {"MPEG_LAYER_III": "MP3", "PCM_16": "FLAC", "VORBIS": "OGG"}


def write_sound(
    path: Path,
    kind: str,
    waveform: np.ndarray,
    *,
    options: dict[str, str] | None = None,
    tags: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
) -> Path:
    """Encode (N,) float sound at 16 kHz as one of `SOUND_KINDS`."""
    muxer, encoder, rate = SOUND_KINDS[kind]
    if muxer is None:
        soundfile.write(path, waveform, RATE, format=SNDFILE_FORMATS[encoder], subtype=encoder)
        return path
    with av.open(str(path), "w", format=muxer, options=options or {}) as out:
        out.metadata.update(tags or {})
        stream = out.add_stream(encoder, rate=rate, layout="mono", options=codec_options or {})
        stream.codec_context.open()
        resample = av.AudioResampler(
            format=stream.format.name, layout="mono", rate=rate, frame_size=stream.codec_context.frame_size or 1024
        )
        frame = av.AudioFrame.from_ndarray(waveform.astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        for part in (*resample.resample(frame), *resample.resample(None)):
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return path


def cuts(data: bytes, number: int) -> Iterator[tuple[int, bytes]]:
    """Copies that end too early, from almost nothing to almost all, and the place of the cut."""
    for place in np.linspace(0.02, 0.995, number):
        end = int(len(data) * place)
        yield end, data[:end]


def flips(data: bytes, number: int, *, start: float = 0.2, seed: int = 0) -> Iterator[tuple[int, bytes]]:
    """Copies with one byte changed, and its place; by default behind the padding that FFmpeg puts into FLAC."""
    random = np.random.default_rng(seed)
    for place in np.linspace(len(data) * start, len(data) - 1, number).astype(int):
        changed = bytearray(data)
        changed[place] ^= int(random.integers(1, 256))
        yield int(place), bytes(changed)


def holes(data: bytes, number: int, *, length: int, start: float = 0.2) -> Iterator[tuple[int, bytes]]:
    """Copies that lack some bytes, and where."""
    for place in np.linspace(len(data) * start, len(data) * 0.9, number).astype(int):
        yield int(place), data[:place] + data[place + length :]


def zeroed(data: bytes, number: int, *, length: int, start: float = 0.2) -> Iterator[tuple[int, bytes]]:
    """Copies in which some bytes are 0, as a disk or a download leaves them, and where."""
    for place in np.linspace(len(data) * start, len(data) * 0.9, number).astype(int):
        yield int(place), data[:place] + bytes(length) + data[place + length :]


def id3(payload: int = 500) -> bytes:
    """An ID3v2 tag."""
    return b"ID3\x04\x00\x00" + struct.pack(">I", (payload >> 7 & 127) << 8 | payload & 127) + bytes(payload)
