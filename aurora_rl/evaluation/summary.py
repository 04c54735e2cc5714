"""Tables made of an evaluation's rows: means with intervals, by split, reference type and category, and gains.

Works from `SampleResult`s alone, that is from files. Sums are rounded once (`math.fsum`), so the order of the rows
changes no digit. Every row of the metadata counts, exact duplicates included, as in the official Ref-AVS script.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from aurora_rl.data.reference_types import reference_type_of
from aurora_rl.evaluation.intervals import Interval, bootstrap_difference, bootstrap_interval
from aurora_rl.evaluation.records import RolloutScore, SampleResult
from aurora_rl.tasks.completions import normalise_category

Measure = Callable[[SampleResult], float | None]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)  # fsum rounds once, so the order of the rows changes nothing


def _of_target(measure: Callable[[SampleResult], float]) -> Measure:
    return lambda result: None if result.is_null else measure(result)


def _of_null(measure: Callable[[SampleResult], float]) -> Measure:
    return lambda result: measure(result) if result.is_null else None


def _of_rollouts(measure: Callable[[RolloutScore], float]) -> Measure:
    return lambda result: _mean([measure(rollout) for rollout in result.sampled]) if result.sampled else None


#: A row's number under each measure, None where it does not apply; a table holds the mean over rows where it does.
MEASURES: dict[str, Measure] = {
    "format_rate": lambda result: result.greedy.format,
    "category_accuracy": lambda result: result.greedy.category_correct,
    "greedy_iou": lambda result: result.greedy.clip.iou,
    "non_null_iou": _of_target(lambda result: result.greedy.clip.iou),
    "sampled_reward": _of_rollouts(lambda rollout: rollout.total),  # of 3
    "sampled_format": _of_rollouts(lambda rollout: rollout.format),
    "sampled_category": _of_rollouts(lambda rollout: rollout.category),
    "sampled_iou": _of_rollouts(lambda rollout: rollout.iou),
    "chain_see": lambda result: result.greedy.see,
    "chain_hear": lambda result: result.greedy.hear,
    "J": _of_target(lambda result: result.greedy.clip.J),
    "F": _of_target(lambda result: result.greedy.clip.F),
    "J&F": _of_target(lambda result: (result.greedy.clip.J + result.greedy.clip.F) / 2),
    "S": _of_null(lambda result: result.greedy.clip.S),
    "S_frames": _of_null(lambda result: result.greedy.clip.S_frames),
    # By the mask: a null clip is right if not a pixel is predicted, and a false alarm otherwise.
    "null_accuracy": _of_null(lambda result: float(result.greedy.clip.S == 0.0)),
    "false_alarm_rate": _of_null(lambda result: float(result.greedy.clip.S > 0.0)),
    # By the words: the answer is that there is no such target.
    "null_answer_accuracy": _of_null(lambda result: result.greedy.category_correct),
}

Table = dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class EvalSummary:
    """Tables of one evaluation. A table maps each of `MEASURES`, `F_pooled` and `num_rows` to its number.

    `F` is the mean over clips of each clip's best F; `F_pooled` the maximum over thresholds of the mean curve, one
    threshold for all clips.

    Attributes:
        preset: the preset of J, F and S.
        num_rows: rows evaluated.
        num_clips: clips they are about.
        num_missing: rows without masks, scored as empty masks.
        num_duplicates: rows that repeat an earlier row's uid and reference; they count like any other.
        num_derived_types: rows whose reference type is from the sentence (`reference_type_of`).
        overall: table of all rows.
        intervals: 95 % bootstrap interval over clips of each measure of `overall`.
        splits: table of each split and, where the training categories are given, of the rows of the unseen split
            whose category was trained on (`"<split>, known categories"`) and was not (`"<split>, new categories"`).
        mix: J, F and J&F over the seen and the unseen split, by both definitions: `"mean of splits"` and
            `"mean of rows"`.
        reference_types: table of each reference type.
        categories: table of each true category.
    """

    preset: str
    num_rows: int
    num_clips: int
    num_missing: int
    num_duplicates: int
    num_derived_types: int
    overall: Table
    intervals: dict[str, Interval]
    splits: dict[str, Table]
    mix: dict[str, Table]
    reference_types: dict[str, Table]
    categories: dict[str, Table]

    def to_dict(self) -> dict[str, Any]:
        """This summary as plain dicts, ready for JSON."""
        return dataclasses.asdict(self)


def summarise(
    results: Iterable[SampleResult],
    *,
    train_categories: Iterable[str] | None = None,
    mix_splits: tuple[str, str] = ("test_s", "test_u"),
    num_resamples: int = 2000,
    seed: int = 0,
) -> EvalSummary:
    """Tables of an evaluation.

    Args:
        results: its rows, all scored under one preset.
        train_categories: categories of the training split, to tell new from known ones in the unseen split.
        mix_splits: names of the seen and the unseen split.
        num_resamples: of the bootstrap intervals.
        seed: of the bootstrap intervals.

    Raises:
        ValueError: if there are no rows, or they were scored under several presets.
    """
    results = list(results)
    preset = _only_preset(results)
    splits = {split: _table(rows) for split, rows in _group(results, lambda result: result.split).items()}
    if train_categories is not None:
        unseen = [result for result in results if result.split == mix_splits[1]]
        splits |= _tables_by_novelty(unseen, train_categories)
    return EvalSummary(
        preset=preset,
        num_rows=len(results),
        num_clips=len({result.media_id for result in results}),
        num_missing=sum(result.greedy.clip.is_missing for result in results),
        num_duplicates=len(results) - len({(row.split, row.uid, row.reference) for row in results}),
        num_derived_types=sum(is_derived for _, is_derived in map(_reference_type, results)),
        overall=_table(results),
        intervals=_intervals(results, num_resamples=num_resamples, seed=seed),
        splits=splits,
        mix=_mix([result for result in results if result.split in mix_splits], mix_splits),
        reference_types={
            name: _table(rows) for name, rows in _group(results, lambda row: _reference_type(row)[0]).items()
        },
        categories={name: _table(rows) for name, rows in _group(results, lambda result: result.category).items()},
    )


def compare(
    before: Iterable[SampleResult], after: Iterable[SampleResult], *, num_resamples: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """Gain of each measure from one run to the other, each row compared with itself, with its 95 % interval.

    A measure that applies to no row of one of the runs (no sampled completions, for example) is left out.

    Raises:
        ValueError: if the runs hold different rows or were scored under different presets.
    """
    before, after = list(before), list(after)
    _only_preset([*before, *after])
    clips = {result.key: result.media_id for result in [*before, *after]}
    gains = {}
    for name in MEASURES:
        values_before, values_after = _values(before, name), _values(after, name)
        if values_before and values_after:
            gains[name] = bootstrap_difference(
                values_before, values_after, clips=clips, num_resamples=num_resamples, seed=seed
            )
    return gains


def _only_preset(results: Sequence[SampleResult]) -> str:
    presets = sorted({result.preset for result in results})
    if len(presets) != 1:
        raise ValueError(f"the rows were scored under the presets {presets}: give rows of exactly one")
    return presets[0]


def _values(results: Iterable[SampleResult], name: str) -> dict[str, float]:
    """The rows' numbers under a measure, by the row's key, where it applies."""
    pairs = ((result.key, MEASURES[name](result)) for result in results)
    return {key: value for key, value in pairs if value is not None}


def _table(results: Sequence[SampleResult]) -> Table:
    values = {name: list(_values(results, name).values()) for name in MEASURES}
    means: Table = {name: _mean(numbers) if numbers else None for name, numbers in values.items()}
    return {"num_rows": len(results), **means, "F_pooled": _pooled_f(results)}


def _pooled_f(results: Iterable[SampleResult]) -> float | None:
    """Maximum over thresholds of the mean curve of the clips with a target; None where the preset has no curves."""
    clips = [result.greedy.clip for result in results if not result.is_null]
    curves = [clip.f_curve for clip in clips]
    if not any(curves) and not (clips and all(clip.is_missing for clip in clips)):
        return None
    # A missing prediction has no curve and adds 0 at every threshold.
    by_threshold = zip(*[curve for curve in curves if curve], strict=True)
    return max((math.fsum(column) / len(curves) for column in by_threshold), default=0.0)


def _intervals(results: Sequence[SampleResult], *, num_resamples: int, seed: int) -> dict[str, Interval]:
    clips = {result.key: result.media_id for result in results}
    intervals = {}
    for name in MEASURES:
        if values := _values(results, name):
            intervals[name] = bootstrap_interval(
                list(values.values()), clips=[clips[key] for key in values], num_resamples=num_resamples, seed=seed
            )
    return intervals


def _mix(results: Sequence[SampleResult], mix_splits: tuple[str, str]) -> dict[str, Table]:
    """Both meanings that papers give to "Mix"; nothing where one of the two splits is absent."""
    by_split = _group(results, lambda result: result.split)
    if set(by_split) != set(mix_splits):
        return {}
    names = ("J", "F", "J&F", "F_pooled")
    tables = [_table(rows) for rows in by_split.values()]
    rows_table = _table(results)
    return {
        "mean of splits": {name: _mean_or_none([table[name] for table in tables]) for name in names},
        "mean of rows": {name: rows_table[name] for name in names},
    }


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if len(known) == len(values) else None


def _tables_by_novelty(unseen: Sequence[SampleResult], train_categories: Iterable[str]) -> dict[str, Table]:
    trained = set(map(normalise_category, train_categories))
    groups = _group(
        unseen,
        lambda row: f"{row.split}, {'known' if normalise_category(row.category) in trained else 'new'} categories",
    )
    return {name: _table(rows) for name, rows in groups.items()}


def _group(results: Iterable[SampleResult], key: Callable[[SampleResult], str]) -> Mapping[str, list[SampleResult]]:
    groups: defaultdict[str, list[SampleResult]] = defaultdict(list)
    for result in results:
        groups[key(result)].append(result)
    return {name: groups[name] for name in sorted(groups)}


def _reference_type(row: SampleResult) -> tuple[str, bool]:
    return reference_type_of(row.reference, row.category, row.reference_type)
