"""Masks drawn over a clip's pictures, and those pictures written as a video that keeps the clip's sound."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np

from aurora_rl.data.containers import SAMPLING_RATE
from aurora_rl.data.footage import Footage, Picture
from aurora_rl.data.sound import Sound

#: Colours of the references, also distinct for colour-blind people (Okabe and Ito), brightest on dark video first.
COLOURS = {
    "orange": (230, 159, 0),
    "sky blue": (86, 180, 233),
    "green": (0, 158, 115),
    "yellow": (240, 228, 66),
    "vermilion": (213, 94, 0),
    "purple": (204, 121, 167),
    "blue": (0, 114, 178),
}
FILL = 0.5  # share of the colour inside a mask
OUTLINE = 2  # pixels, more on a picture with sides of more than 400

#: Codecs in order of preference; not every build of PyAV has the first.
VIDEO_CODECS = ("libx264", "mpeg4")
SOUND_RATE = 48_000  # Hz
#: Ticks a second: frames at 24, 25, 29.97, 30, 50 and 60 a second last whole ticks, and MPEG-4 allows up to 65,535.
TICKS = 30_000
#: Seconds that a single picture without sound is shown.
STILL_SECONDS = 1.0


def colour_of(reference: int) -> str:
    """Return the name of a reference's colour, by its number."""
    return list(COLOURS)[reference % len(COLOURS)]


def draw_masks(pixels: np.ndarray, masks: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Fill and outline the masks on a picture, one colour each.

    Args:
        pixels: (H, W, 3) uint8 picture.
        masks: (R, H, W) bool masks of R references.

    Returns:
        (H, W, 3) uint8.
    """
    drawn = pixels.astype(np.float32)
    outline = max(OUTLINE, max(pixels.shape) // 200)
    for reference, mask in enumerate(masks):
        colour = np.array(COLOURS[colour_of(reference)], dtype=np.float32)
        drawn[mask] = (1 - FILL) * drawn[mask] + FILL * colour
        drawn[mask & ~_eroded(mask, outline)] = colour
    return drawn.round().astype(np.uint8)


class OverlayVideo:
    """Context manager that writes pictures at their times, and the sound of a clip, into an mp4 file.

    The file is complete when the block ends without an error, and removed otherwise.

    Args:
        path: the file.
        footage: the clip that gives the sound and the size of the pictures; odd sides gain a line.
    """

    def __init__(self, path: Path, footage: Footage) -> None:
        self.path = path
        self.footage = footage
        self._waiting: Picture | None = None  # until the next picture tells how long this one is shown
        self._durations: dict[int, int] = {}
        self._gap = 0

    def __enter__(self) -> Self:
        self._container = av.open(os.path.abspath(self.path), "w", format="mp4")
        codec = next(name for name in VIDEO_CODECS if name in av.codec.codecs_available)
        height, width = self.footage.frame_size
        quality = {"crf": "20", "preset": "veryfast"} if codec == "libx264" else {"qscale": "4"}
        # Without reordering ("bf") the last frame written is the last one shown, whose duration ends the file.
        stream = self._container.add_stream(codec, rate=30, options={"bf": "0", **quality})
        assert isinstance(stream, av.VideoStream)
        self._video = stream
        self._video.width, self._video.height = width + width % 2, height + height % 2
        self._video.pix_fmt = "yuv420p"
        self._video.codec_context.time_base = Fraction(1, TICKS)
        self._opened = contextlib.ExitStack()
        sound = self._opened.enter_context(self.footage.sound())
        self._sound = None if sound is None else _SoundTrack(self._container, sound)
        return self

    def write(self, picture: Picture) -> None:
        """Add a picture; they come in order of time."""
        if self._waiting is not None:
            self._encode(self._waiting, until=picture.time)
        self._waiting = picture

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._opened.close()
            self._container.close()
            if kind is not None:
                self.path.unlink(missing_ok=True)

    def _finish(self) -> None:
        if self._waiting is not None:
            self._encode(self._waiting, until=self._waiting.time + self._last_seconds())
        self._mux(self._video.encode(None))
        if self._sound is not None:
            self._sound.write_until(float("inf"))

    def _last_seconds(self) -> float:
        """Return how long the last picture is shown, in seconds: as long as the one before it."""
        if self._gap:
            return self._gap / TICKS
        waveform = self.footage.waveform
        return STILL_SECONDS if waveform is None else len(waveform) / SAMPLING_RATE

    def _encode(self, picture: Picture, *, until: float) -> None:
        pixels = picture.pixels
        pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        ticks = round(picture.time * TICKS)
        frame.pts, frame.time_base = ticks, Fraction(1, TICKS)
        self._gap = max(1, round(until * TICKS) - ticks)
        self._durations[ticks] = self._gap
        self._mux(self._video.encode(frame))
        if self._sound is not None:
            self._sound.write_until(until)

    def _mux(self, packets: Sequence[av.Packet]) -> None:
        for packet in packets:
            if packet.pts is not None and packet.pts in self._durations:
                packet.duration = self._durations.pop(packet.pts)
            self._container.mux(packet)


class _SoundTrack:
    """The clip's sound as AAC, written beside the pictures so that a player need not seek."""

    def __init__(self, container: av.container.OutputContainer, sound: Sound) -> None:
        self.container = container
        self.sound = sound
        self.blocks = sound.blocks()
        self.block = next(self.blocks, None)
        layout = "mono" if self.block is None or _layout(sound, self.block) == "mono" else "stereo"
        self.stream = container.add_stream("aac", rate=SOUND_RATE, layout=layout)
        self.resample = av.AudioResampler(format="fltp", layout=layout, rate=SOUND_RATE)
        self.read = self.written = 0  # samples, from the first picture on

    def write_until(self, seconds: float) -> None:
        """Write the sound before this time; with infinity also what the encoder has buffered."""
        while self.block is not None and self.written < seconds * SOUND_RATE:
            self._write(self.resample.resample(self._frame(self.block)))
            self.block = next(self.blocks, None)
            if self.block is None:
                self._write(self.resample.resample(None))
                self.container.mux(self.stream.encode(None))

    def _frame(self, block: np.ndarray) -> av.AudioFrame:
        layout = _layout(self.sound, block)
        if layout == "mono":
            block = block.mean(axis=0, keepdims=True)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout=layout)
        frame.sample_rate = self.sound.rate
        frame.pts, frame.time_base = self.read, Fraction(1, self.sound.rate)
        self.read += block.shape[1]
        return frame

    def _write(self, frames: Sequence[av.AudioFrame]) -> None:
        for frame in frames:
            frame.pts, frame.time_base = self.written, Fraction(1, SOUND_RATE)
            self.written += frame.samples
            self.container.mux(self.stream.encode(frame))


def _layout(sound: Sound, block: np.ndarray) -> str:
    """Return the layout of a block (channels, n); if the channels' places are unknown, they are mixed to mono."""
    if sound.layout is None:
        return "mono"
    return sound.layout if av.AudioLayout(sound.layout).nb_channels == len(block) else "mono"


def _eroded(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Remove from a mask (H, W) a band of this width along its border; the picture's edge is not a border."""
    for _ in range(pixels):
        padded = np.pad(mask, 1, constant_values=True)
        mask = mask & padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    return mask
