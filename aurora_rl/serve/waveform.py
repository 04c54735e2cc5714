"""A clip's sound over time as inline SVG; the page moves a line over it while the video plays."""

from __future__ import annotations

import numpy as np

from aurora_rl.data.containers import SAMPLING_RATE
from aurora_rl.inference.pipeline import ClipAnswer
from aurora_rl.report.pages import page_environment

COLUMNS = 300  # bars of the drawing
HALF_HEIGHT = 50.0  # half the height of the drawing, in its own units
LEAST_BAR = 0.5  # half the height of the shortest bar, so that silence is a line
#: Waveforms whose peak is lower are not stretched to the full height: their noise would look like sound.
LEAST_PEAK = 0.02


def draw_waveform(answer: ClipAnswer, *, fps: float) -> str:
    """Return HTML of the sound, with a mark for each frame that the model has read.

    Args:
        answer: answer to a clip, which may have no sound.
        fps: frames a second that the model has read.
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
    """Return the peak in each of `columns` equal parts of the time, divided by the loudest peak.

    Args:
        waveform: (N,) float32 in [-1, 1], 16 kHz.
        seconds: length of the whole time; after the end of the sound there is silence.
        columns: number of parts.

    Returns:
        (columns,) peaks in [0, 1].
    """
    edges = np.round(np.linspace(0, seconds * SAMPLING_RATE, columns + 1)).astype(int)
    parts = [np.abs(waveform[start:end]) for start, end in zip(edges[:-1], edges[1:], strict=True)]
    peaks = np.array([part.max(initial=0.0) for part in parts])
    return peaks / max(peaks.max(), LEAST_PEAK)


def _bars(waveform: np.ndarray, seconds: float) -> str:
    """Draw the bars as an SVG path of vertical lines."""
    heights = np.maximum(envelope(waveform, seconds, COLUMNS) * HALF_HEIGHT, LEAST_BAR)
    return "".join(
        f"M{column + 0.5} {HALF_HEIGHT - height:.1f}V{HALF_HEIGHT + height:.1f}"
        for column, height in enumerate(heights)
    )
