"""Tracks as agents are shown them: coloured and numbered on the frames, and a line of words each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from aurora_rl.agents.investigation import Segmentation
from aurora_rl.inference.overlay import COLOURS, colour_of, draw_masks

#: Largest number of tracks: one a colour.
MAX_TRACKS = len(COLOURS)
#: Height of a number beside that of the frame, and its least height in pixels.
NUMBER_SHARE, NUMBER_PIXELS = 1 / 14, 12


def draw_tracks(frames: np.ndarray, tracks: Sequence[np.ndarray], *, numbered: bool = True) -> np.ndarray:
    """Colour the tracks on the frames and write their numbers, from 1, near their centres.

    Args:
        frames: (F, H, W, 3) uint8 frames.
        tracks: (F, H, W) bool masks of each track.
        numbered: whether the numbers are written.

    Returns:
        (F, H, W, 3) uint8.
    """
    masks_of_frames = [[track[at] for track in tracks] for at in range(len(frames))]
    drawn = [draw_masks(frame, masks) for frame, masks in zip(frames, masks_of_frames, strict=True)]
    if numbered:
        drawn = [_write_numbers(frame, masks) for frame, masks in zip(drawn, masks_of_frames, strict=True)]
    return np.stack(drawn)


def describe_tracks(tracks: Sequence[Segmentation]) -> str:
    """Write a line for each track: its number and colour, when it is visible, where and how large it is.

    >>> masks = np.zeros((3, 4, 4), bool)
    >>> masks[1:, :2, :2] = True
    >>> describe_tracks([Segmentation(masks, 0.5)])
    '- 1 (orange): frames 2 to 3 of 3, centre at 25% from the left and 25% from the top, 25% of the picture, score 0.50'
    """
    return "\n".join(f"- {number} ({colour_of(number - 1)}): {_words(track)}" for number, track in enumerate(tracks, 1))


def _words(track: Segmentation) -> str:
    masks = track.masks
    visible = np.flatnonzero(masks.any(axis=(1, 2)))
    if not len(visible):
        return "in no frame"
    _, rows, columns = np.nonzero(masks)
    left, top = (columns.mean() + 0.5) / masks.shape[2], (rows.mean() + 0.5) / masks.shape[1]
    size = masks[visible].mean()
    score = "" if track.score is None else f", score {track.score:.2f}"
    return (
        f"frames {visible[0] + 1} to {visible[-1] + 1} of {len(masks)}, centre at {left:.0%} from the left and "
        f"{top:.0%} from the top, {size:.0%} of the picture{score}"
    )


def _write_numbers(frame: np.ndarray, masks: Sequence[np.ndarray]) -> np.ndarray:
    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(NUMBER_PIXELS, round(frame.shape[0] * NUMBER_SHARE)))
    for number, mask in enumerate(masks, 1):
        if mask.any():
            rows, columns = np.nonzero(mask)
            middle = np.abs(rows - rows.mean()) + np.abs(columns - columns.mean())
            at = int(middle.argmin())  # a pixel of the mask, which its centre need not be
            place = (int(columns[at]), int(rows[at]))
            draw.text(place, str(number), fill="white", font=font, anchor="mm", stroke_width=2, stroke_fill="black")
    return np.asarray(image)
