"""A clip's sound over time as inline SVG, over which the page moves a line while the video plays."""

from __future__ import annotations

import numpy as np

from aurora_rl.data.containers import SAMPLING_RATE
from aurora_rl.inference.pipeline import ClipAnswer
from aurora_rl.report.pages import page_environment

COLUMNS = 300  # bars of the drawing
HALF_HEIGHT = 50.0  # of the drawing, in its own units
LEAST_BAR = 0.5  # so that silence is a line
#: Waveforms whose peak is lower are not stretched to the full height: their noise would look like sound.
LEAST_PEAK = 0.02


def draw_waveform(answer: ClipAnswer, *, fps: float) -> str:
    """HTML of the sound, with a mark for each frame that the model saw.

    Args:
        answer: to a clip with or without sound.
        fps: frames a second that the model saw.
    """
    waveform = answer.footage.waveform
    seconds = answer.frame_times[-1] + 1 / fps
    if waveform is not None:
        seconds = max(seconds, len(waveform) / SAMPLING_RATE)
    return (
        page_environment("aurora_rl.serve")
        .get_template("waveform.html.j2")
        .render(
            path=None if waveform is None else _bars(waveform, seconds),
            seconds=seconds,
            columns=COLUMNS,
            height=2 * HALF_HEIGHT,
            frames=[time / seconds for time in answer.frame_times],
        )
    )


def envelope(waveform: np.ndarray, seconds: float, columns: int) -> np.ndarray:
    """The peak in each of so many equal parts of the time, as a share of the loudest one.

    Args:
        waveform: (N,) float32 in [-1, 1], 16 kHz.
        seconds: of the whole time; where the sound has ended there is silence.
        columns: number of parts.

    Returns:
        (columns,) in [0, 1].
    """
    edges = np.round(np.linspace(0, seconds * SAMPLING_RATE, columns + 1)).astype(int)
    parts = [np.abs(waveform[start:end]) for start, end in zip(edges[:-1], edges[1:], strict=True)]
    peaks = np.array([part.max(initial=0.0) for part in parts])
    return peaks / max(peaks.max(), LEAST_PEAK)


def _bars(waveform: np.ndarray, seconds: float) -> str:
    """An SVG path of upright lines."""
    heights = np.maximum(envelope(waveform, seconds, COLUMNS) * HALF_HEIGHT, LEAST_BAR)
    return "".join(
        f"M{column + 0.5} {HALF_HEIGHT - height:.1f}V{HALF_HEIGHT + height:.1f}"
        for column, height in enumerate(heights)
    )
