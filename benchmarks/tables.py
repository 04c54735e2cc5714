"""Markdown tables of measured seconds; every number is a median over the repeats."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from benchmarks.contenders import MASK_PARTS, PARTS, Step
from benchmarks.mask_decoding import LOOP, Decoding
from benchmarks.prompt_sharing import Sharing
from benchmarks.timing import Seconds
from benchmarks.workload import StepShape


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Steps of the two trainers.

    Attributes:
        pairs: pairs of successive steps, TRL's and ours.
    """

    pairs: Sequence[tuple[Step, Step]]

    def seconds(self, parts: Iterable[str], clock: str) -> tuple[float, float]:
        """Return the seconds of some parts together, in TRL's trainer and in ours."""
        stock, aurora = zip(*self.pairs, strict=True)
        return _median_seconds(stock, parts, clock), _median_seconds(aurora, parts, clock)

    def ratio(self, clock: str) -> float:
        """Return the ratio of our whole step to TRL's."""
        return self._ratio((*PARTS, *MASK_PARTS), clock)

    def ratio_without_masks(self, clock: str) -> float:
        """Return the ratio of our step, without the parts for masks alone, to TRL's."""
        return self._ratio(PARTS, clock)

    def _ratio(self, parts: Sequence[str], clock: str) -> float:
        return median(ours.seconds(parts, clock) / stock.seconds(PARTS, clock) for stock, ours in self.pairs)


def step_table(comparison: Comparison, clock: str) -> str:
    """Return the table of a step by part."""
    rows: list[tuple[str, ...]] = [(part, *_cells(comparison, [part], clock)) for part in PARTS]
    rows.append(
        ("**without masks**", *_cells(comparison, PARTS, clock)[:2], f"{comparison.ratio_without_masks(clock):.3f}")
    )
    rows += [(part, *_cells(comparison, [part], clock)) for part in MASK_PARTS]
    whole = _cells(comparison, (*PARTS, *MASK_PARTS), clock)[:2]
    rows.append(("**whole step**", *whole, f"{comparison.ratio(clock):.3f}"))
    stock, aurora = zip(*comparison.pairs, strict=True)
    peaks = [median(step.peak_gb for step in steps) for steps in (stock, aurora)]
    rows.append(("peak memory, GB", *(f"{peak:.2f}" for peak in peaks), _ratio_cell(*peaks)))
    forwards = [median(step.num_forwards for step in steps) for steps in (stock, aurora)]
    rows.append(("forward passes, rollouts aside", *(f"{n:g}" for n in forwards), _ratio_cell(*forwards)))
    return table((f"part, {clock} seconds", "TRL", "Aurora-RL", "ratio"), rows)


def decoding_table(decoding: Mapping[str, Decoding], clock: str) -> str:
    """Return the table of mask decoding by way."""
    loop = decoding[LOOP].median(clock)
    rows = [
        (name, f"{way.median(clock):.2f}", f"{way.median(clock) / loop:.2f}", f"{way.peak_gb:.2f}")
        for name, way in decoding.items()
    ]
    return table(("completions", f"{clock} seconds", "of the first loop", "peak memory, GB"), rows)


def embedding_table(encoded: Sequence[Seconds], read: Sequence[Seconds], clock: str) -> str:
    """Return the table of the two ways to an embedding, with the factor between them."""
    times = [median(span.on(clock) for span in spans) for spans in (encoded, read)]
    rows = [("encoded in the step", f"{times[0]:.3f}", "1"), ("read from the cache", f"{times[1]:.4f}", "")]
    factor = f"{times[0] / times[1]:.0f} times faster"
    return table(("embeddings", f"{clock} seconds", ""), [rows[0], (*rows[1][:2], factor)])


def sharing_table(sharing: Sharing, clock: str) -> str:
    """Return the table of a group's two passes."""
    plain, shared = (median(span.on(clock) for span in spans) for spans in (sharing.plain, sharing.shared))
    rows = [
        ("in every row", str(sharing.plain_tokens), f"{plain:.2f}", "1", _megabytes(sharing.plain_bytes)),
        (
            "once",
            str(sharing.shared_tokens),
            f"{shared:.2f}",
            f"{sharing.ratio(clock):.2f} times faster",
            _megabytes(sharing.shared_bytes),
        ),
    ]
    return table(("the prompt", "tokens", f"{clock} seconds", "", "kept for backward, MB"), rows)


def _megabytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e6:.0f}"


def sweep_table(comparisons: Sequence[tuple[StepShape, Comparison]], clock: str) -> str:
    """Return the table of whole steps of several sizes."""
    rows = []
    for shape, comparison in comparisons:
        stock, aurora = comparison.seconds((*PARTS, *MASK_PARTS), clock)
        _, masks = comparison.seconds(MASK_PARTS, clock)
        sizes = (shape.num_generations, shape.num_frames, shape.completion_length)
        seconds = (f"{stock:.2f}", f"{aurora:.2f}", f"{masks:.2f}")
        rows.append((*map(str, sizes), *seconds, f"{comparison.ratio(clock):.3f}"))
    return table(("G", "F", "tokens", f"TRL, {clock} seconds", "Aurora-RL", "of these masks", "ratio"), rows)


def _cells(comparison: Comparison, parts: Sequence[str], clock: str) -> tuple[str, str, str]:
    stock, aurora = comparison.seconds(parts, clock)
    return f"{stock:.3f}", f"{aurora:.3f}", _ratio_cell(stock, aurora)


def _ratio_cell(stock: float, aurora: float) -> str:
    return f"{aurora / stock:.3f}" if stock >= 0.001 else "–"  # below that a ratio is noise


def _median_seconds(steps: Sequence[Step], parts: Iterable[str], clock: str) -> float:
    names = tuple(parts)
    return median(step.seconds(names, clock) for step in steps)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
