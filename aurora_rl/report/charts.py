"""Learning curves as inline SVG that follows the page's light or dark colours."""

from __future__ import annotations

import dataclasses
import html
import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Matplotlib writes fixed colours; each of these is replaced by the page's CSS variable beside it.
_INK, _GRID = "#010101", "#020202"
_LINES = ("#030301", "#030302", "#030303", "#030304", "#030305", "#030306")
_CSS_COLOURS = {_INK: "var(--ink-soft)", _GRID: "var(--rule)"} | {
    colour: f"var(--line-{number})" for number, colour in enumerate(_LINES, start=1)
}
_MAX_LINES = len(_LINES)
_MAX_POINTS = 300  # points of a line; longer lines are averaged, so that a page of charts stays small


@dataclasses.dataclass(frozen=True)
class Series:
    """One logged number over the steps of a run."""

    label: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


def line_chart(series: Sequence[Series], *, title: str, is_share: bool = False) -> str:
    """Draw up to six series over the training steps; long ones are faint, with their running mean on top.

    Args:
        series: lines, each with at least one point.
        title: description of the chart, for readers who do not see the picture.
        is_share: whether the values lie in [0, 1], so that charts of this kind share one scale.

    Returns:
        An `<svg>` element.
    """
    if not 0 < len(series) <= _MAX_LINES:
        raise ValueError(f"the chart {title!r} has {len(series)} series: give 1 to {_MAX_LINES}")
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "text.parse_math": False, "font.size": 9}):
        figure = Figure(figsize=(4.0, 2.2), layout="constrained")
        axes = figure.add_subplot()
        for colour, line in zip(_LINES, series, strict=False):
            _draw_line(axes, _thinned(line), colour)
        _style_axes(axes, is_share=is_share)
        if len(series) > 1:
            _draw_legend(figure, axes)
        in_words = "; ".join(f"{line.label} from {line.values[0]:.3g} to {line.values[-1]:.3g}" for line in series)
        return _inline_svg(figure, title=f"{title}. {in_words}.")


def _draw_line(axes: Axes, line: Series, colour: str) -> None:
    window = len(line.values) // 12
    has_mean = window >= 3
    style: dict[str, Any] = {"alpha": 0.28, "linewidth": 0.9} if has_mean else {"linewidth": 1.8, "label": line.label}
    axes.plot(line.steps, line.values, color=colour, marker="o" if len(line.values) == 1 else None, **style)
    if has_mean:
        axes.plot(line.steps, _running_mean(line.values, window), color=colour, linewidth=1.9, label=line.label)


def _thinned(line: Series) -> Series:
    """Reduce a line to at most 300 points, each the mean of neighbours."""
    if len(line.values) <= _MAX_POINTS:
        return line
    steps, values = (np.array_split(np.asarray(part), _MAX_POINTS) for part in (line.steps, line.values))
    return Series(line.label, tuple(float(part.mean()) for part in steps), tuple(float(part.mean()) for part in values))


def _running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Compute the centred mean over `2 * (window // 2) + 1` values, over fewer at both ends."""
    half = window // 2
    array = np.asarray(values, dtype=np.float64)
    return np.array([array[max(0, at - half) : at + half + 1].mean() for at in range(len(array))])


def _style_axes(axes: Axes, *, is_share: bool) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.grid(axis="y", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=_INK, pad=5)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    if is_share:
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0.0, 0.5, 1.0])


def _draw_legend(figure: Figure, axes: Axes) -> None:
    handles, _ = axes.get_legend_handles_labels()
    columns = 3 if len(handles) > 4 else 2 if len(handles) > 2 else len(handles)
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        labelcolor=_INK,
        fontsize=8.5,
        handlelength=1.1,
        columnspacing=1.2,
        borderpad=0,
    )


def _inline_svg(figure: Figure, *, title: str) -> str:
    """Render the figure as an element of which a page may hold many: no prolog, repeated ids, size or font."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    text = buffer.getvalue()
    svg = text[text.index("<svg") :]
    svg = re.sub(r' id="[A-Za-z.]+[A-Za-z0-9.]*_\d+"', "", svg)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r"<defs>\s*<style.*?</defs>|font-family: [^;]*; ", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg class="chart" role="img" \1>', svg, count=1)
    for colour, variable in _CSS_COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg.replace(">", f"><title>{html.escape(title, quote=False)}</title>", 1)
