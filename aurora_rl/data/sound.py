"""The sound of a file, each part placed by its time stamps: gaps are silent, overlaps are left out.

    with open_sound("speech.mp3") as sound:
        for block in sound.blocks():  # (channels, n) float32, without a break from the sound's first sample on
            ...

`mono` mixes and resamples such blocks for a model. Only its result is in memory as a whole.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import re
from collections.abc import Iterator
from typing import Any, Protocol

import av
import numpy as np
import soundfile
import soxr

from aurora_rl.data.containers import (
    MAX_CHANNELS,
    MAX_SECONDS,
    FilePath,
    MediaError,
    check_length,
    check_sampling_rate,
    decoded,
    note_of_tracks,
    open_container,
    open_video,
    playing_track,
    told_as_media_error,
)
from aurora_rl.data.damage import check_whole, flac_samples, sound_kind

logger = logging.getLogger(__name__)

AUDIO_BLOCK = 16_384  # samples read from a WAV at a time, so that a file of many channels needs little memory
MAX_PEAK = 4.0  # 12 dB over full scale: lossy codecs overshoot a little, integers stored as floats overshoot by far
CUT_DATA_CHUNK = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)  # in libsndfile's log of a file
UNKNOWN_CHUNK_SIZE = 0x7FFFFFFF  # programs that stream a WAV write this or more
WAV_FORMATS = ("WAV", "WAVEX", "RF64")
WAV_CODECS = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM")
SOUND_KINDS = "WAV, FLAC, OGG, MP3, AAC, MP4 or WebM"
#: Demuxers by `sound_kind`.
DEMUXERS = {"flac": "flac", "ogg": "ogg", "mp3": "mp3", "aac": "aac", "mp4": "mov,mp4", "matroska": "matroska,webm"}
#: Kinds without gaps between frames: a gap means that the demuxer has skipped damage.
SEAMLESS = ("flac", "mp3", "aac")
SEAM = 0.002  # seconds

#: Seconds that a time stamp may differ from the end of the sound before it: containers round, and recorders vary.
JITTER = 0.03
#: Seconds below which a sound is too short to be heard.
SHORTEST_SOUND = 0.1
#: Seconds of late start from which there is a note.
LATE_START = 0.1
#: Seconds that a file may end before its header says.
SHORT_END = 0.1
#: Channels cancel out if the power of their mean is below this share of its power for uncorrelated channels.
CANCELLED = 0.1


class EmptySoundError(MediaError):
    """A sound track without a single sample."""


class Sound(Protocol):
    """The sound of a file.

    Attributes:
        path: the file.
        rate: samples a second.
        layout: FFmpeg's name of the channels' layout; None where the file does not hold it.
        start: time of the first sample, in seconds of the file's own time.
        notes: notes for the user; complete when all blocks were read.
    """

    path: FilePath
    rate: int
    layout: str | None
    start: float
    notes: list[str]

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield (channels, n) float32, block by block; the blocks can be read once."""


@contextlib.contextmanager
def open_sound(path: FilePath) -> Iterator[Sound]:
    """Open a sound file, or a video for its sound, and check the file's bytes.

    Raises:
        MediaError: naming the file, here or while blocks are read, if it is of no known kind, truncated, damaged or too
            long.
    """
    kind = sound_kind(path)
    if kind == "wav":
        with _open_wav(path) as sound:
            yield sound
        return
    if kind is None:
        raise MediaError(f"cannot read the audio {path}: it is of no known kind: expected {SOUND_KINDS}, convert it")
    check_whole(path, kind)
    with told_as_media_error("audio", path), open_container(path, (DEMUXERS[kind],)) as container:
        stream = playing_track(container, "audio")
        if stream is None:
            raise MediaError(f"cannot read the audio {path}: it has no sound track; give one that has")
        yield PlacedSound(
            container,
            stream,
            path,
            is_strict=True,
            is_seamless=kind in SEAMLESS,
            samples=_promised_samples(stream, path, kind),
        )


def _promised_samples(stream: Any, path: FilePath, kind: str) -> tuple[int, int] | None:
    """Return the least and the largest number of samples that the file promises; None where it promises none."""
    if kind == "flac":
        samples = flac_samples(path)
        return (samples, samples) if samples else None
    seconds = _promised_seconds(stream)
    if seconds is None or kind in ("mp3", "aac"):  # frames are checked already, and lengths are estimates
        return None
    if kind == "ogg":  # pages are checked already; samples behind the last page's number are padding
        return 0, round(seconds * stream.rate)
    slack = SHORT_END * stream.rate
    return round(seconds * stream.rate - slack), 2**62


def _promised_seconds(stream: Any) -> float | None:
    """Return the length of a track in the container's header; None where it has none."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    written = stream.metadata.get("DURATION", "")  # Matroska's, written by FFmpeg: the end in the file's own time
    parts = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", written)
    if parts is None:
        return None
    hours, minutes, seconds = parts.groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds) - float((stream.start_time or 0) * stream.time_base)


class PlacedSound:
    """A container's track whose samples are placed by their time stamps.

    Args:
        container: the container, just opened.
        stream: the track.
        path: path of the file, for errors.
        max_seconds: longest allowed sound, in seconds.
        is_strict: whether damage that a decoder would hide is an error.
        is_seamless: whether a gap is an error.
        samples: least and largest number of samples, None if unknown; samples beyond are padding.
    """

    def __init__(
        self,
        container: av.container.InputContainer,
        stream: Any,
        path: FilePath,
        *,
        max_seconds: float = MAX_SECONDS,
        is_strict: bool = False,
        is_seamless: bool = False,
        samples: tuple[int, int] | None = None,
    ) -> None:
        self.path = path
        self.max_seconds = max_seconds
        self.samples = samples
        self.is_seamless = is_seamless
        self._frames = decoded(container, stream, path, is_strict=is_strict)
        self._first = next(self._frames, None)
        if self._first is None:
            raise EmptySoundError(f"the audio of {path} is empty: replace the file")
        self.rate: int = self._first.sample_rate
        self.layout: str | None = self._first.layout.name
        check_sampling_rate(self.rate, path)
        if self._first.layout.nb_channels > MAX_CHANNELS:
            raise MediaError(f"{path} has {self._first.layout.nb_channels} channels: the limit is {MAX_CHANNELS}")
        self.start = _frame_seconds(self._first) or 0.0
        note = note_of_tracks(container, "audio")
        self.notes = [] if note is None else [note]
        self._written = self._silence = self._left_out = 0  # samples

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield (channels, n) float32, block by block; the blocks can be read once."""
        for frame, samples in self._float_frames():
            gap = self._place(frame) - self._written
            yield from self._silent_blocks(gap, len(samples))
            samples = samples[:, max(-gap, 0) :]
            self._left_out += min(max(-gap, 0), frame.samples)
            if self.samples is not None:
                samples = samples[:, : max(self.samples[1] - self._written, 0)]
            self._written += samples.shape[1]
            if samples.size:
                yield samples
        if self.samples is not None and self._written < self.samples[0]:
            raise MediaError(
                f"the audio {self.path} is cut off or damaged: {self._written / self.rate:.2f} s of at least "
                f"{self.samples[0] / self.rate:.2f} s; replace the file"
            )
        if self._silence:
            self.notes.append(f"the sound has gaps: silence stands there for {self._silence / self.rate:.2f} s")
        if self._left_out > JITTER * self.rate:
            self.notes.append(
                f"{self._left_out / self.rate:.2f} s of sound overlap what sounds before them and are left out"
            )

    def _float_frames(self) -> Iterator[tuple[Any, np.ndarray]]:
        """Yield decoded frames and their samples (channels, n), up to the longest allowed sound."""
        to_float = av.AudioResampler(format="fltp")  # keeps rate and channels
        frame, num_samples = self._first, 0
        while frame is not None:
            if frame.sample_rate != self.rate or frame.layout.name != self.layout:
                raise MediaError(f"the audio of {self.path} changes its format: re-encode it")
            num_samples += frame.samples
            check_length(num_samples / self.rate, self.path, max_seconds=self.max_seconds)
            for part in to_float.resample(frame):
                yield frame, part.to_ndarray()
            frame = next(self._frames, None)

    def _place(self, frame: Any) -> int:
        """Return the index of a frame's first sample in the whole sound."""
        seconds = _frame_seconds(frame)
        if seconds is None:
            return self._written
        place = round((seconds - self.start) * self.rate)
        if self.is_seamless and abs(place - self._written) > SEAM * self.rate:
            raise MediaError(
                f"the audio {self.path} is damaged after {self._written / self.rate:.2f} s: what follows belongs to "
                f"{place / self.rate:.2f} s; replace the file"
            )
        check_length(place / self.rate, self.path, max_seconds=self.max_seconds)
        return self._written if abs(place - self._written) <= JITTER * self.rate else place

    def _silent_blocks(self, samples: int, channels: int) -> Iterator[np.ndarray]:
        while samples > 0:
            block = np.zeros((channels, min(samples, self.rate)), dtype=np.float32)
            samples -= block.shape[1]
            self._written += block.shape[1]
            self._silence += block.shape[1]
            yield block


def _frame_seconds(frame: Any) -> float | None:
    return None if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base)


class _WavSound:
    """A WAV file; it has no time stamps."""

    def __init__(self, file: soundfile.SoundFile, path: FilePath) -> None:
        self.path = path
        self.rate: int = file.samplerate
        self.layout: str | None = {1: "mono", 2: "stereo"}.get(file.channels)
        self.start = 0.0
        self.notes: list[str] = []
        self._file = file

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield (channels, n) float32, block by block; the blocks can be read once."""
        for block in self._file.blocks(AUDIO_BLOCK, dtype="float32", always_2d=True):
            yield np.ascontiguousarray(block.T)


@contextlib.contextmanager
def _open_wav(path: FilePath) -> Iterator[_WavSound]:
    try:
        with soundfile.SoundFile(os.fspath(path)) as file:
            if file.format not in WAV_FORMATS or not file.subtype.startswith(WAV_CODECS):
                raise MediaError(f"the audio {path} is {file.format} of {file.subtype}: expected PCM, convert it")
            check_sampling_rate(file.samplerate, path)
            check_length(file.frames / file.samplerate, path)
            _check_not_cut_off(file, path)
            yield _WavSound(file, path)
    except (soundfile.SoundFileError, TypeError) as error:  # a TypeError for raw formats, known by suffix only
        raise MediaError(f"cannot read the audio {path}: {error}; replace the file") from error


def _check_not_cut_off(file: soundfile.SoundFile, path: FilePath) -> None:
    """Refuse a WAV that is shorter than its header says: libsndfile only logs it and returns the shorter audio."""
    match = CUT_DATA_CHUNK.search(file.extra_info)
    if match is None:
        return
    promised, found = int(match[1]), int(match[2])
    if found < promised < UNKNOWN_CHUNK_SIZE:
        raise MediaError(f"the audio {path} is cut off: {found} bytes of {promised}; replace the file")


class Mono:
    """The mean of a sound's channels; its blocks can be read once.

    Attributes:
        num_samples: number of samples read so far.
    """

    def __init__(self, sound: Sound) -> None:
        self.sound = sound
        self.num_samples = 0
        self._power = self._power_of_mean = 0.0
        self._channels = 1

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield (n,) float32, block by block.

        Raises:
            MediaError: if values are no audio, or if there are no samples.
        """
        for block in self.sound.blocks():
            mean = block.mean(axis=0)
            if not np.isfinite(mean).all():
                raise MediaError(f"the audio of {self.sound.path} holds values that are not finite: replace the file")
            peak = float(np.abs(mean).max())
            if peak > MAX_PEAK:
                raise MediaError(
                    f"the audio of {self.sound.path} has a peak of {peak:g}: expected values in [-1, 1], scale it"
                )
            self._channels = len(block)
            if self._channels > 1:
                self._power += float(np.square(block, dtype=np.float64).sum()) / self._channels
                self._power_of_mean += float(np.square(mean, dtype=np.float64).sum())
            self.num_samples += mean.size
            yield mean
        if not self.num_samples:
            raise MediaError(f"the audio of {self.sound.path} is empty: replace the file")
        if self._power and self._power_of_mean * self._channels < CANCELLED * self._power:
            ratio = self._power_of_mean / self._power
            fall = f"{-10 * math.log10(ratio):.0f} dB quieter" if ratio > 1e-12 else "silent"
            self.sound.notes.append(f"the channels of the sound cancel out: mixed to one, it is {fall}")


def log_notes(sound: Sound) -> None:
    """Log the notes on a sound, once per file."""
    for note in sound.notes:
        _log_once(os.path.abspath(sound.path), note)


@functools.lru_cache(maxsize=10_000)
def _log_once(path: str, note: str) -> None:  # a training reads its files again in every epoch
    logger.warning("%s: %s", path, note)


def mono(sound: Sound, *, sampling_rate: int) -> np.ndarray:
    """Mix a sound to one channel and resample it to (N,) float32 in [-1, 1].

    Raises:
        MediaError: if it is empty, or holds values that are no audio.
    """
    resample = soxr.ResampleStream(sound.rate, sampling_rate, 1, dtype="float32", quality="HQ")
    parts = [resample.resample_chunk(np.ascontiguousarray(block)) for block in Mono(sound).blocks()]
    parts.append(resample.resample_chunk(np.zeros(0, dtype=np.float32), last=True))
    waveform = np.concatenate(parts)
    _check_resampled(waveform, sound.path, sampling_rate)
    return np.clip(waveform, -1.0, 1.0, out=waveform)


def check_sound(sound: Sound, *, sampling_rate: int) -> None:
    """Decode a sound and drop it, in little memory, to find the errors of `mono`."""
    mixed = Mono(sound)
    for _ in mixed.blocks():
        pass
    if mixed.num_samples <= AUDIO_BLOCK:  # so short that it may be resampled to nothing
        nothing = np.zeros(mixed.num_samples, dtype=np.float32)
        _check_resampled(soxr.resample(nothing, sound.rate, sampling_rate, quality="HQ"), sound.path, sampling_rate)


def _check_resampled(waveform: np.ndarray, path: FilePath, sampling_rate: int) -> None:
    if waveform.size == 0:
        raise MediaError(f"the audio of {path} is shorter than one sample at {sampling_rate} Hz: replace the file")


def shifted(blocks: Iterator[np.ndarray], samples: int) -> Iterator[np.ndarray]:
    """Shift blocks (channels, n) by so many samples: later, after silence, or earlier, without their beginning."""
    for block in blocks:
        for done in range(0, max(samples, 0), AUDIO_BLOCK):
            yield np.zeros((len(block), min(AUDIO_BLOCK, samples - done)), dtype=np.float32)
        samples = min(samples, 0)
        kept = block[:, -samples:]
        samples = min(samples + block.shape[1], 0)
        if kept.size:
            yield kept


class ShiftedSound:
    """A sound from some time of its file on, for example from the first picture on.

    Args:
        sound: the sound, just opened.
        start: start in seconds of the file's time; None for the sound's own first sample.
        max_seconds: longest allowed silence before the sound, in seconds.
    """

    def __init__(self, sound: Sound, start: float | None, *, max_seconds: float = MAX_SECONDS) -> None:
        self.path, self.rate, self.layout, self.notes = sound.path, sound.rate, sound.layout, sound.notes
        self.delay = 0.0 if start is None else sound.start - start
        self.start = sound.start - self.delay
        self._sound = sound
        check_length(self.delay, self.path, max_seconds=max_seconds)
        if self.delay > LATE_START:
            self.notes.append(f"the sound starts {self.delay:.2f} s after the pictures: silence stands before it")

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield (channels, n) float32, block by block; the blocks can be read once."""
        return shifted(self._sound.blocks(), round(self.delay * self.rate))


@contextlib.contextmanager
def open_track(path: FilePath, *, start: float, max_seconds: float = MAX_SECONDS) -> Iterator[ShiftedSound | None]:
    """Open the sound of a video from some time on; None where the video has no sound track.

    Args:
        path: a video file.
        start: time of the first picture, in seconds of the file's own time.
        max_seconds: longest allowed sound, in seconds.
    """
    with told_as_media_error("video", path), open_video(path) as container:
        stream = playing_track(container, "audio")
        if stream is None:
            yield None
            return
        sound = PlacedSound(container, stream, path, max_seconds=max_seconds)
        yield ShiftedSound(sound, start, max_seconds=max_seconds)
