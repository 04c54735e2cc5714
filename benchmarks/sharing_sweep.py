"""How far the gain of `share_prompts` depends on a group's sizes: its G completions, and P and C tokens of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.prompt_sharing import Group, Sharing
from benchmarks.tables import Comparison, table
from benchmarks.workload import StepShape

#: A prompt of P tokens: so many frames, and so many words more.
PROMPTS = {200: (2, 45), 600: (8, 49), 1200: (17, 55), 2400: (36, 1)}
MODEL = StepShape(hidden_size=256, num_layers=2, num_heads=4, frame_size=128)


def group_of(num_generations: int = 8, prompt_length: int = 1200, completion_length: int = 128) -> Group:
    """Return a group of these sizes; the default ones are those of the targets: media, a chain of thought, eight."""
    num_frames, num_more_words = PROMPTS.get(prompt_length, (1, 0))
    shape = dataclasses.replace(
        MODEL,
        num_generations=num_generations,
        completion_length=completion_length,
        num_frames=num_frames,
        num_more_words=num_more_words,
    )
    return Group(shape, prompt_length)


GROUP = group_of()
#: One size differs from that of the first group.
SWEEP = (
    GROUP,
    *(group_of(num_generations=g) for g in (2, 4, 16, 32)),
    *(group_of(prompt_length=p) for p in (200, 600, 2400)),
    *(group_of(completion_length=c) for c in (32, 64, 256, 512)),
)
#: Groups whose tokens are counted.
CORNERS = tuple(group_of(g, p, c) for g in (2, 32) for p in (200, 2400) for c in (32, 512))
#: Prompts that are shorter than their completions, where there is little to share.
SHORT = (group_of(8, 32, 128), group_of(2, 32, 512), group_of(2, 8, 128))


@dataclasses.dataclass(frozen=True)
class Point:
    """What was measured of a group; ratios are of its prompt in every row, or of TRL's trainer, to ours.

    Attributes:
        group: the group.
        passes: its forward and backward passes; None where only its tokens are counted.
        step: whole steps of TRL's trainer and ours; None where there were none.
    """

    group: Group
    passes: Sharing | None = None
    step: Comparison | None = None

    @property
    def tokens_ratio(self) -> float:
        plain, shared = self.group.tokens
        return plain / shared

    @property
    def bytes_ratio(self) -> float | None:
        return None if self.passes is None else 1 / self.passes.bytes_ratio

    def pass_ratio(self, clock: str) -> float | None:
        return None if self.passes is None else self.passes.ratio(clock)

    def step_ratio(self, clock: str) -> float | None:
        return None if self.step is None else 1 / self.step.ratio(clock)


def groups_table(points: Sequence[Point], clock: str) -> str:
    """Return the table of groups of several sizes; all ratios are of the prompt in every row to the prompt once."""
    rows = [
        (
            *(f"{size:,}" for size in (*point.group.sizes, *point.group.tokens)),
            f"{point.tokens_ratio:.2f}",
            *map(_cell, (point.pass_ratio(clock), point.bytes_ratio, point.step_ratio(clock))),
        )
        for point in points
    ]
    ratios = ("tokens, ratio", f"passes, {clock} seconds, ratio", "kept for backward, ratio", "whole step, ratio")
    return table(("G", "P", "C", "tokens in every row", "once", *ratios), rows)


def _cell(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"


def draw(points: Sequence[Point], clock: str, path: Path) -> None:
    """Draw the ratios against each of G, P and C, the other two being those of the first point."""
    lines: dict[str, Callable[[Point], float | None]] = {
        "tokens, by count": lambda point: point.tokens_ratio,
        "forward + backward": lambda point: point.pass_ratio(clock),
        "whole step": lambda point: point.step_ratio(clock),
    }
    names = ("G, completions", "P, tokens of the prompt", "C, tokens of a completion")
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sharing", "font.size": 9}):
        figure = Figure(figsize=(8.0, 2.8), layout="constrained")
        for axis, (axes, name) in enumerate(zip(figure.subplots(1, 3, sharey=True), names, strict=True)):
            on_axis = points_along(axis, points)
            for (label, ratio), style in zip(lines.items(), ("k:", "C0o-", "C1s-"), strict=True):
                places = [point.group.sizes[axis] for point in on_axis]
                axes.plot(places, [ratio(point) for point in on_axis], style, label=label, markersize=4)
            _style(axes, name, [point.group.sizes[axis] for point in on_axis])
        figure.axes[0].set_ylabel("times less")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def points_along(axis: int, points: Sequence[Point]) -> list[Point]:
    """Return the points that differ from the first one in one of `Group.sizes` alone, in its order."""

    def others(point: Point) -> list[int]:
        return [size for place, size in enumerate(point.group.sizes) if place != axis]

    return sorted((p for p in points if others(p) == others(points[0])), key=lambda p: p.group.sizes[axis])


def _style(axes: Axes, name: str, ticks: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(name)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", linewidth=0.4)
    axes.spines[["top", "right"]].set_visible(False)
