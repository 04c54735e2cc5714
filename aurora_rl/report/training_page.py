"""One HTML page about a training run: what changed, by how much and how surely, with clips to look at and listen to.

The end of the flow. It reads files alone (evaluation JSONL, trainer states, the clips' media) and writes one file that
loads nothing from anywhere: pictures, sound and curves are inside it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from aurora_rl.data.sample import AVSample
from aurora_rl.evaluation.intervals import Interval
from aurora_rl.evaluation.records import SampleResult, read_results
from aurora_rl.evaluation.summary import EvalSummary, Table, compare, summarise
from aurora_rl.files.atomic import write_whole
from aurora_rl.files.plain import parse_json, read_text_file
from aurora_rl.report.charts import Series, line_chart
from aurora_rl.report.clips import GalleryClip, choose_rows, render_clip
from aurora_rl.report.pages import page_environment

FilePath = str | Path


@dataclasses.dataclass(frozen=True)
class ReportResults:
    """Evaluation files (`records.write_results`) that the page compares, all of the same rows.

    Attributes:
        before: of the model that reinforcement learning started from.
        after: of the model that it made.
        before_name: what the page calls the first.
        after_name: what the page calls the second.
        ablations: evaluations of one model with something taken away, by what that is.
        ablated: of that model with nothing taken away; None where it is the model of `after`.
        ablated_name: what the page calls it.
        without_chain_guards: of a second run without rewards on the chain and without KL, where there was one.
    """

    before: FilePath
    after: FilePath
    before_name: str = "SFT"
    after_name: str = "GRPO"
    ablations: Mapping[str, FilePath] = dataclasses.field(default_factory=dict)
    ablated: FilePath | None = None
    ablated_name: str = "nothing taken away"
    without_chain_guards: FilePath | None = None


@dataclasses.dataclass(frozen=True)
class MeasureText:
    """How a measure of `summary.MEASURES` is called on the page.

    Attributes:
        name: key in the tables.
        label: heading.
        meaning: one sentence.
        scale: the best possible value, or the worst where lower is better.
        lower_is_better: as it says.
    """

    name: str
    label: str
    meaning: str
    scale: float = 1.0
    lower_is_better: bool = False

    def verdict(self, gain: Interval) -> str:
        """Whether an interval of gains lies wholly on one side of zero: `"better"`, `"worse"` or `"unclear"`."""
        low, high = (-gain.high, -gain.low) if self.lower_is_better else (gain.low, gain.high)
        return "better" if low > 0 else "worse" if high < 0 else "unclear"


MEASURE_TEXTS = {
    text.name: text
    for text in (
        MeasureText(
            "sampled_reward", "Sampled reward", "format + category + mask IoU of sampled completions", scale=3.0
        ),
        MeasureText("sampled_iou", "Sampled IoU", "mask IoU of sampled completions"),
        MeasureText("category_accuracy", "Category", "the greedy answer names the right object"),
        MeasureText("greedy_iou", "Mask IoU", "of greedy completions; 1 − S where nothing is referred to"),
        MeasureText("non_null_iou", "Mask IoU, targets only", "of greedy completions whose reference has a target"),
        MeasureText("chain_see", "Sees right", "the chain names exactly the objects in view"),
        MeasureText("chain_hear", "Hears right", "the chain names exactly the sounds, in order"),
        MeasureText("format_rate", "Format", "four steps, then one final [SEG]"),
        MeasureText("J", "J", "region similarity"),
        MeasureText("F", "F", "mean over clips of each clip's best F"),
        MeasureText("J&F", "J&F", "mean of J and F"),
        MeasureText("F_pooled", "F, one threshold", "maximum over thresholds of the mean curve of all clips"),
        MeasureText("S", "S", "share of a null clip that is wrongly marked, square root", lower_is_better=True),
        MeasureText("S_frames", "S, by frame", "S of each frame, then the mean", lower_is_better=True),
        MeasureText("null_accuracy", "Null, empty mask", "null clips where not a pixel is marked"),
        MeasureText("false_alarm_rate", "False alarms", "null clips where something is marked", lower_is_better=True),
        MeasureText("null_answer_accuracy", "Null, answer", "null references answered 'there is no such target'"),
    )
}

_HEADLINES = ("sampled_reward", "category_accuracy", "non_null_iou", "chain_see", "chain_hear", "null_answer_accuracy")
_GAINS = (
    "sampled_reward",
    "sampled_iou",
    "category_accuracy",
    "greedy_iou",
    "non_null_iou",
    "null_answer_accuracy",
    "chain_see",
    "chain_hear",
    "format_rate",
)
_VARIANTS = ("sampled_reward", "category_accuracy", "non_null_iou", "chain_see", "chain_hear", "format_rate")
_GROUPS = ("category_accuracy", "greedy_iou", "sampled_reward", "chain_see", "chain_hear")
_BENCHMARK = ("J", "F", "J&F", "F_pooled", "S", "S_frames", "null_accuracy", "false_alarm_rate")


@dataclasses.dataclass(frozen=True)
class GainRow:
    """A measure before and after, each with its interval, and the gain."""

    text: MeasureText
    before: Interval
    after: Interval
    gain: Interval
    verdict: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """A number before and after; None where the measure does not apply."""

    text: MeasureText
    before: float | None
    after: float | None


@dataclasses.dataclass(frozen=True)
class GroupRow:
    """A line of a before-and-after table."""

    name: str
    num_rows: int | None
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A line of a table that compares runs: its numbers and, unless it is the base, the gains over the base."""

    name: str
    means: tuple[Interval | None, ...]
    gains: tuple[Interval | None, ...] = ()
    verdicts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class VariantTable:
    """Runs beside each other, each compared with the base run."""

    base: str
    measures: tuple[MeasureText, ...]
    variants: tuple[Variant, ...]


@dataclasses.dataclass(frozen=True)
class Panel:
    """A chart: what it shows and which keys of a trainer's log are its lines.

    Attributes:
        title: heading.
        key: pattern of the whole key; a group `name` is the line's label.
        is_share: whether the values lie in [0, 1].
    """

    title: str
    key: str
    is_share: bool = False


PANELS = (
    Panel("Loss", r"loss"),
    Panel("Reward", r"reward"),
    Panel("Rewards by function", r"rewards/(?P<name>.+)/mean", is_share=True),
    Panel("Chain of thought, share right", r"chain/(?P<name>.+)", is_share=True),
    Panel("Mask IoU by reference type", r"iou/(?P<name>.+)", is_share=True),
    Panel("Category by reference type, share right", r"category/(?P<name>.+)", is_share=True),
    Panel("KL from the reference model, nats a token", r"kl"),
    Panel("Entropy, nats a token", r"entropy"),
    Panel("Completion length, tokens", r"completions/mean_length"),
    Panel("Mask losses", r"mask_(?P<name>bce|dice|loss)"),
    Panel("With the true text ahead", r"(?P<name>teacher_forced_iou|mean_token_accuracy)", is_share=True),
    Panel("To watch", r"(?P<name>frac_reward_zero_std|completions/clipped_ratio)", is_share=True),
)
_KEY_LABELS = {
    "frac_reward_zero_std": "groups without signal",
    "completions/clipped_ratio": "completions cut off",
    "see": "sees right",
    "hear": "hears right",
    "teacher_forced_iou": "mask IoU",
    "mean_token_accuracy": "tokens right",
    "mask_iou_reward": "mask IoU",
    "bce": "BCE",
    "dice": "Dice",
}
_MAX_SERIES = 6
_MIN_REACH = 0.02  # of the picture of gains to both sides of 0


def write_report(
    out_html: FilePath,
    *,
    title: str,
    runs: Mapping[str, FilePath],
    results: ReportResults,
    gallery: Sequence[AVSample],
    num_clips: int = 24,
) -> Path:
    """Write the page.

    Args:
        out_html: where to.
        title: heading of the page.
        runs: by name of the run, in order, its `trainer_state.json` or the folder that holds it.
        results: the evaluations to compare.
        gallery: samples that may be shown, with their media on disk.
        num_clips: how many of them are shown at most.

    Returns:
        `out_html`.

    Raises:
        ValueError: if evaluations hold different rows.
        MediaError: if a shown clip's media cannot be read.
    """
    before, after = read_results(results.before), read_results(results.after)
    summaries, differences = (summarise(before), summarise(after)), compare(before, after)
    gains = _gain_rows(summaries, differences, _GAINS)
    page = page_environment().get_template("report.html.j2")
    html = page.render(
        title=title,
        before_name=results.before_name,
        after_name=results.after_name,
        summary=summaries[1],
        headlines=_gain_rows(summaries, differences, _HEADLINES),
        gains=gains,
        gain_range=_gain_range(gains),
        guards=_guard_table(results, before, after),
        ablations=_ablation_table(results, after),
        reference_types=_group_rows([summary.reference_types for summary in summaries], _GROUPS),
        categories=_group_rows([summary.categories for summary in summaries], _GROUPS),
        benchmark=_group_rows([_benchmark_tables(summary) for summary in summaries], _BENCHMARK),
        runs={name: _charts(read_log_history(path), name) for name, path in runs.items()},
        clips=_gallery_clips(gallery, {results.before_name: before, results.after_name: after}, num_clips),
        measures=MEASURE_TEXTS,
    )
    write_whole(out_html, html)
    return Path(out_html)


def read_log_history(path: FilePath) -> list[dict[str, Any]]:
    """What a trainer logged: one dict a logging step.

    Args:
        path: a `trainer_state.json`, or a folder that holds one.

    Raises:
        ValueError: if the file is no trainer state.
    """
    path = Path(path)
    path = path / "trainer_state.json" if path.is_dir() else path
    try:
        return list(parse_json(read_text_file(path))["log_history"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no trainer state ({error}): give the file that trainer.save_state() writes"
        ) from error


# ------------------------------------------------------------------------------------------------ tables


def _gain_rows(
    summaries: tuple[EvalSummary, EvalSummary], gains: Mapping[str, Interval], names: Sequence[str]
) -> list[GainRow]:
    """The measures that apply to both runs."""
    before, after = (summary.intervals for summary in summaries)
    texts = [MEASURE_TEXTS[name] for name in names if name in gains]
    return [
        GainRow(text, before[text.name], after[text.name], gains[text.name], text.verdict(gains[text.name]))
        for text in texts
    ]


def _gain_range(rows: Sequence[GainRow]) -> tuple[float, float]:
    """Least and greatest gain to draw, as shares of each measure's scale; holds 0."""
    lows = [row.gain.low / row.text.scale for row in rows]
    highs = [row.gain.high / row.text.scale for row in rows]
    return min(-_MIN_REACH, *lows), max(_MIN_REACH, *highs)


def _group_rows(tables: Sequence[Mapping[str, Table]], names: Sequence[str]) -> list[GroupRow]:
    """Groups that both runs have, null ones last, without the measures that apply to no group."""
    before, after = tables
    rows = [
        GroupRow(
            name,
            _as_int(after[name].get("num_rows")),
            tuple(Cell(MEASURE_TEXTS[key], before[name].get(key), after[name].get(key)) for key in names),
        )
        for name in sorted(after, key=lambda name: after[name].get("J") is None)
        if name in before
    ]
    applies = [any(row.cells[column].after is not None for row in rows) for column in range(len(names))]
    return [
        dataclasses.replace(row, cells=tuple(cell for cell, kept in zip(row.cells, applies, strict=True) if kept))
        for row in rows
    ]


def _as_int(value: float | None) -> int | None:
    return None if value is None else int(value)


def _benchmark_tables(summary: EvalSummary) -> dict[str, Table]:
    return {**summary.splits, **{f"Mix, {definition}": table for definition, table in summary.mix.items()}}


def _guard_table(
    results: ReportResults, before: Sequence[SampleResult], after: Sequence[SampleResult]
) -> VariantTable | None:
    """The run without the chain's guards beside the others, compared with where both runs started."""
    if results.without_chain_guards is None:
        return None
    variants = {
        results.after_name: after,
        f"{results.after_name} without the chain's guards": read_results(results.without_chain_guards),
    }
    return _variant_table(results.before_name, before, variants, _VARIANTS)


def _ablation_table(results: ReportResults, after: Sequence[SampleResult]) -> VariantTable | None:
    if not results.ablations:
        return None
    variants = {name: read_results(path) for name, path in results.ablations.items()}
    if results.ablated is None:
        return _variant_table(results.after_name, after, variants, _VARIANTS)
    return _variant_table(results.ablated_name, read_results(results.ablated), variants, _VARIANTS)


def _variant_table(
    base_name: str,
    base: Sequence[SampleResult],
    variants: Mapping[str, Sequence[SampleResult]],
    names: Sequence[str],
) -> VariantTable:
    base_intervals = summarise(base).intervals
    texts = tuple(MEASURE_TEXTS[name] for name in names if name in base_intervals)
    first = Variant(base_name, tuple(base_intervals[text.name] for text in texts))
    return VariantTable(
        base_name, texts, (first, *(_variant(name, base, rows, texts) for name, rows in variants.items()))
    )


def _variant(
    name: str, base: Sequence[SampleResult], rows: Sequence[SampleResult], texts: Sequence[MeasureText]
) -> Variant:
    intervals, gains = summarise(rows).intervals, compare(base, rows)
    return Variant(
        name,
        means=tuple(intervals.get(text.name) for text in texts),
        gains=tuple(gains.get(text.name) for text in texts),
        verdicts=tuple(text.verdict(gains[text.name]) if text.name in gains else "unclear" for text in texts),
    )


# ------------------------------------------------------------------------------------------------ curves


def _charts(log_history: Sequence[Mapping[str, Any]], run: str) -> list[tuple[str, Markup]]:
    """(heading, SVG) of each panel that the run logged."""
    charts = []
    for panel in PANELS:
        if series := _series(log_history, panel):
            title = f"{run}: {panel.title}"
            charts.append((panel.title, Markup(line_chart(series, title=title, is_share=panel.is_share))))
    return charts


def _series(log_history: Sequence[Mapping[str, Any]], panel: Panel) -> list[Series]:
    """The panel's lines, in the order in which the run first logged them."""
    keys = dict.fromkeys(key for entry in log_history for key in entry)
    matches = [match for key in keys if (match := re.fullmatch(panel.key, key))]
    lines = [_line(log_history, match) for match in matches]
    return [line for line in lines if line.values][:_MAX_SERIES]


def _line(log_history: Sequence[Mapping[str, Any]], match: re.Match[str]) -> Series:
    """One key's numbers; an entry where it is not a number has no point."""
    key, label = match[0], match.groupdict().get("name", match[0])
    points = [(entry["step"], entry[key]) for entry in log_history if isinstance(entry.get(key), int | float)]
    return Series(
        label=_KEY_LABELS.get(label, _readable(label)),
        steps=tuple(step for step, _ in points),
        values=tuple(value for _, value in points),
    )


def _readable(key: str) -> str:
    return key.removesuffix("_reward").replace("_", " ").replace("/", " ").strip()


# ------------------------------------------------------------------------------------------------ clips


def _gallery_clips(
    samples: Sequence[AVSample], runs: Mapping[str, Sequence[SampleResult]], num_clips: int
) -> list[GalleryClip]:
    """The chosen rows of those whose media are at hand."""
    at_hand = {sample.key: sample for sample in samples}
    by_run = {name: {row.key: row for row in rows if row.key in at_hand} for name, rows in runs.items()}
    before, after = (list(rows.values()) for rows in by_run.values())
    return [
        render_clip(
            at_hand[choice.key], {name: rows[choice.key] for name, rows in by_run.items()}, reason=choice.reason
        )
        for choice in choose_rows(before, after, num_rows=num_clips)
    ]
