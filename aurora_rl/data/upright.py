"""Decoded pictures are shown as in players: rotated and mirrored by the display matrix, with square pixels."""

from __future__ import annotations

import dataclasses
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation

from aurora_rl.data.containers import MAX_IMAGE_PIXELS, FilePath, MediaError


@dataclasses.dataclass(frozen=True)
class Display:
    """The transformation of a video's stored pictures for display.

    Attributes:
        size: (height, width) in square pixels, upright.
        swaps_sides: whether rows are shown as columns; this comes before the flips.
        flips_rows: whether the shown picture is upside down compared with the stored one.
        flips_columns: whether left and right change places.
    """

    size: tuple[int, int]
    swaps_sides: bool = False
    flips_rows: bool = False
    flips_columns: bool = False

    def pixels(self, frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
        """Return a decoded frame as (H, W, 3) uint8, RGB, scaled to `size` = (H, W)."""
        height, width = size[::-1] if self.swaps_sides else size
        if (height, width) != (frame.height, frame.width):
            # One step from the codec's pixels, so that a large picture never exists as RGB.
            frame = frame.reformat(width=width, height=height, format="rgb24", interpolation=Interpolation.AREA)
        pixels = frame.to_ndarray(format="rgb24")
        if self.swaps_sides:
            pixels = pixels.swapaxes(0, 1)
        return np.ascontiguousarray(pixels[:: -1 if self.flips_rows else 1, :: -1 if self.flips_columns else 1])


def display_of(frame: av.VideoFrame, stream: Any, path: FilePath) -> Display:
    """Find how a decoded frame of a stream is shown; never with fewer pixels than are stored.

    Raises:
        MediaError: if the shown picture has too many pixels.
    """
    height, width = frame.height, frame.width
    ratio = stream.sample_aspect_ratio or 1
    if ratio > 1:
        width = round(width * ratio)
    else:
        height = round(height / ratio)
    if height * width > MAX_IMAGE_PIXELS:
        raise MediaError(
            f"the video {path} is shown at {width}x{height} pixels: the limit is {MAX_IMAGE_PIXELS} in all, scale it "
            "down"
        )
    a, b, c, d = _linear_part(frame)
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Display((height, width), flips_rows=d < 0, flips_columns=a < 0)
    return Display((width, height), swaps_sides=True, flips_rows=b < 0, flips_columns=c < 0)


def _linear_part(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """Return a, b, c, d of the display matrix, which shows a stored pixel (x, y) at (ax + cy, bx + dy)."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 1, 0, 0, 1
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(matrix), dtype=np.int32)[:5])
    return a, b, c, d
