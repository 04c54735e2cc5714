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
from aurora_rl.evaluation.comparison import Difference, compare_overall
from aurora_rl.evaluation.measures import MASK_MEASURES, MEASURES, Measure
from aurora_rl.evaluation.records import RowResult, read_results
from aurora_rl.evaluation.tables import Table, number_tables
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


@dataclasses.dataclass(frozen=True)
class Cell:
    """A number before and after; None where the measure does not apply."""

    measure: Measure
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
    means: tuple[float | None, ...]
    gains: tuple[Difference | None, ...] = ()


@dataclasses.dataclass(frozen=True)
class VariantTable:
    """Runs beside each other, each compared with the base run."""

    base: str
    measures: tuple[Measure, ...]
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
    tables, differences = (number_tables(before), number_tables(after)), compare_overall(before, after)
    gains = _choose(differences, _GAINS)
    page = page_environment().get_template("report.html.j2")
    html = page.render(
        title=title,
        before_name=results.before_name,
        after_name=results.after_name,
        scores=tables[1],
        num_rows=len(after),
        headlines=_choose(differences, _HEADLINES),
        gains=gains,
        gain_range=_gain_range(gains),
        guards=_guard_table(results, before, after),
        ablations=_ablation_table(results, after),
        reference_types=_group_rows([scores["tables"]["by_reference_type"] for scores in tables], _GROUPS),
        categories=_group_rows([scores["tables"]["by_category"] for scores in tables], _GROUPS),
        benchmark=_group_rows([_benchmark_tables(scores) for scores in tables], MASK_MEASURES),
        runs={name: _charts(read_log_history(path), name) for name, path in runs.items()},
        clips=_gallery_clips(gallery, {results.before_name: before, results.after_name: after}, num_clips),
        measures=MEASURES,
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


def _choose(differences: Mapping[str, Difference], names: Sequence[str]) -> list[Difference]:
    """The measures that apply to both runs."""
    return [differences[name] for name in names if name in differences]


def _gain_range(rows: Sequence[Difference]) -> tuple[float, float]:
    """Least and greatest gain to draw, as shares of each measure's scale; holds 0."""
    lows = [row.gain.low / row.measure.scale for row in rows]
    highs = [row.gain.high / row.measure.scale for row in rows]
    return min(-_MIN_REACH, *lows), max(_MIN_REACH, *highs)


def _group_rows(tables: Sequence[Mapping[str, Table]], names: Sequence[str]) -> list[GroupRow]:
    """Groups that both runs have, null ones last, without the measures that apply to no group."""
    before, after = tables
    rows = [
        GroupRow(
            name,
            _num_rows(after[name]),
            tuple(Cell(MEASURES[key], before[name].get(key), after[name].get(key)) for key in names),
        )
        for name in sorted(after, key=lambda name: "J" not in after[name])
        if name in before
    ]
    applies = [any(row.cells[column].after is not None for row in rows) for column in range(len(names))]
    return [
        dataclasses.replace(row, cells=tuple(cell for cell, kept in zip(row.cells, applies, strict=True) if kept))
        for row in rows
    ]


def _num_rows(numbers: Table) -> int | None:
    """Rows of a group; None of Mix."""
    return int(numbers["n"] + numbers.get("n_null", 0)) if "n" in numbers else None


def _benchmark_tables(scores: Mapping[str, Any]) -> dict[str, Table]:
    mixes = {f"Mix, {name.replace('_', ' ')}": mix for name, mix in scores["mix"].items() if mix}
    return {**scores["splits"], **mixes}


def _guard_table(
    results: ReportResults, before: Sequence[RowResult], after: Sequence[RowResult]
) -> VariantTable | None:
    """The run without the chain's guards beside the others, compared with where both runs started."""
    if results.without_chain_guards is None:
        return None
    variants = {
        results.after_name: after,
        f"{results.after_name} without the chain's guards": read_results(results.without_chain_guards),
    }
    return _variant_table(results.before_name, before, variants, _VARIANTS)


def _ablation_table(results: ReportResults, after: Sequence[RowResult]) -> VariantTable | None:
    if not results.ablations:
        return None
    variants = {name: read_results(path) for name, path in results.ablations.items()}
    if results.ablated is None:
        return _variant_table(results.after_name, after, variants, _VARIANTS)
    return _variant_table(results.ablated_name, read_results(results.ablated), variants, _VARIANTS)


def _variant_table(
    base_name: str,
    base: Sequence[RowResult],
    variants: Mapping[str, Sequence[RowResult]],
    names: Sequence[str],
) -> VariantTable:
    overall = {name: MEASURES[name].over(base) for name in names}
    measures = tuple(MEASURES[name] for name in names if overall[name] is not None)
    first = Variant(base_name, tuple(overall[measure.name] for measure in measures))
    others = [_variant(name, base, rows, measures) for name, rows in variants.items()]
    return VariantTable(base_name, measures, (first, *others))


def _variant(name: str, base: Sequence[RowResult], rows: Sequence[RowResult], measures: Sequence[Measure]) -> Variant:
    differences = compare_overall(base, rows, names=[measure.name for measure in measures])
    return Variant(
        name,
        means=tuple(measure.over(rows) for measure in measures),
        gains=tuple(differences.get(measure.name) for measure in measures),
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
    samples: Sequence[AVSample], runs: Mapping[str, Sequence[RowResult]], num_clips: int
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
