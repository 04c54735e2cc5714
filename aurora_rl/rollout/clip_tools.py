"""Tools that measure a clip and tell it in words: loudness in a window of time, colours and their size in a region.

An environment for reference segmentation: `environment_factory: aurora_rl.rollout.clip_tools:ClipTools`. `Ears` and
`Eyes` have the tools of one sense alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from aurora_rl.data.containers import SAMPLING_RATE
from aurora_rl.data.media import SILENCE_DBFS
from aurora_rl.data.sample import AVClip
from aurora_rl.tools.sound import level_dbfs

#: Names of hues, each up to an angle on the circle of colours in degrees; red is on both sides of 0.
HUES = (("red", 15), ("orange", 45), ("yellow", 70), ("green", 170), ("cyan", 200), ("blue", 260), ("purple", 300))
NAMES = (*(name for name, _ in HUES), "pink", "red", "black", "grey", "white")
PINK_UNTIL = 345
#: Largest number of colours that are told of a region.
NUM_TOLD = 3


class _OfClip:
    """Remembers the rollout's clip."""

    def reset(self, *, read_clip: Callable[[], AVClip], **row: Any) -> None:
        """Begin a rollout on a clip, see `environments.Environment.reset`."""
        self._read_clip = read_clip


class Ears(_OfClip):
    """What can be measured in the sound of a rollout's clip."""

    def loudness(self, start_s: float, end_s: float) -> str:
        """Tell how loud the sound is between two times, and how much louder than the whole clip.

        Args:
            start_s: start of the window, in seconds
            end_s: end of the window, in seconds
        """
        waveform = self._read_clip().waveform
        if waveform is None:
            return "The clip has no sound."
        first, last = (round(SAMPLING_RATE * max(0.0, float(time))) for time in (start_s, end_s))
        window = waveform[first:last]
        if not window.size:
            raise ValueError(f"the sound lasts {len(waveform) / SAMPLING_RATE:.1f} s: end_s must come after start_s")
        level, whole = level_dbfs(window), level_dbfs(waveform)
        if level < SILENCE_DBFS:
            return "Silence."
        difference = round(level - whole)
        compared = "as loud as" if not difference else f"{abs(difference)} dB {'above' if difference > 0 else 'below'}"
        return f"{level:.0f} dBFS, {compared} the whole clip."


class Eyes(_OfClip):
    """What can be measured in the frames of a rollout's clip."""

    def colours(self, frame: int, left: float, top: float, right: float, bottom: float) -> str:
        """Tell which colours a region of a frame has, and how much of the frame each covers.

        Args:
            frame: number of the frame, counted from 0
            left: left border, as a share of the width from 0 to 1
            top: upper border, as a share of the height from 0 to 1
            right: right border, as a share of the width from 0 to 1
            bottom: lower border, as a share of the height from 0 to 1
        """
        frames = self._read_clip().frames
        if not 0 <= int(frame) < len(frames):
            raise ValueError(f"the clip has {len(frames)} frames: frame must be from 0 to {len(frames) - 1}")
        height, width = frames.shape[1:3]
        rows, columns = _pixels(top, bottom, height), _pixels(left, right, width)
        region = frames[int(frame), rows, columns].reshape(-1, 3)
        if not len(region):
            raise ValueError("the region is empty: right must be above left, bottom above top, all from 0 to 1")
        names, counts = np.unique(np.asarray(NAMES)[_colour_indices(region)], return_counts=True)
        most = np.argsort(-counts, kind="stable")[:NUM_TOLD]
        told = (f"{names[i]} {_percent(counts[i], len(region))} of it" for i in most)
        return f"{', '.join(told)}; the region is {_percent(len(region), height * width)} of the frame."


class ClipTools(Ears, Eyes):
    """What can be measured in a rollout's clip."""


def _pixels(start: float, end: float, size: int) -> slice:
    first, last = (round(size * min(max(float(share), 0.0), 1.0)) for share in (start, end))
    return slice(first, last)


def _percent(count: int, total: int) -> str:
    return f"{100 * count / total:.0f} %"


def _colour_indices(pixels: np.ndarray) -> np.ndarray:
    """Return the index in `NAMES` of each pixel of (N, 3) uint8: by hue, or by brightness where colour is weak."""
    red, green, blue = np.moveaxis(pixels.astype(np.float64) / 255, -1, 0)
    brightest, darkest = pixels.max(1) / 255, pixels.min(1) / 255
    chroma = np.maximum(brightest - darkest, 1e-9)
    hue = np.select(
        [brightest == red, brightest == green],
        [(green - blue) / chroma % 6, (blue - red) / chroma + 2],
        (red - green) / chroma + 4,
    )
    index = np.digitize(60 * hue, [*(until for _, until in HUES), PINK_UNTIL])
    black, grey, white = (NAMES.index(name) for name in ("black", "grey", "white"))
    is_weak = (brightest - darkest) < 0.15 * np.maximum(brightest, 0.4)
    index = np.where(is_weak, np.where(brightest > 0.85, white, grey), index)
    return np.where(brightest < 0.2, black, index)
