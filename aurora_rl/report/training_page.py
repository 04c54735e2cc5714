"""The HTML page of a training: changes of scores with their intervals, learning curves, and clips with sound.

It is the last step of the flow. It reads only files (evaluations, trainer states, the clips' media) and writes one file
that loads no others: pictures, sound and curves are inside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from aurora_rl.data.sample import AVSample
from aurora_rl.evaluation.ablations import ABLATIONS
from aurora_rl.evaluation.comparison import Difference, compare_overall
from aurora_rl.evaluation.measures import MASK_MEASURES, MEASURES, Measure
from aurora_rl.evaluation.presets import find_preset
from aurora_rl.evaluation.records import RowResult, read_meanings, read_results
from aurora_rl.evaluation.tables import number_tables
from aurora_rl.report.clips import render_clips
from aurora_rl.report.curves import draw_curves, read_log_history
from aurora_rl.report.pages import write_page
from aurora_rl.report.sections import (
    DifferenceTable,
    RunTable,
    ScoreTable,
    run_table,
    score_table,
    shown_measures,
    with_mix,
)

#: Measures of tasks that are answered in words, or by boxes; reference segmentation has others.
_OF_OTHER_TASKS = ("accuracy", "sampled_accuracy", "box_iou", "box_hits", "point_in_mask", "presence")
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
_OF_RUNS = ("sampled_reward", "category_accuracy", "non_null_iou", "chain_see", "chain_hear", "format_rate")
_OF_GROUPS = ("category_accuracy", "greedy_iou", "sampled_reward", "chain_see", "chain_hear")


@dataclasses.dataclass(frozen=True)
class Run:
    """A training or an evaluation.

    Attributes:
        name: name of the run on the page.
        folder: folder of its files.
    """

    name: str
    folder: Path

    def results(self) -> list[RowResult]:
        """Read the rows of an evaluation."""
        return read_results(self.folder)

    def ablations(self) -> dict[str, list[RowResult]]:
        """Read the rows of each ablation that an evaluation has made, by the ablation's name."""
        files = {name: self.folder / f"results.{name}.jsonl" for name in ABLATIONS}
        return {name: read_results(file) for name, file in files.items() if file.is_file()}


def write_training_page(
    out_html: str | Path,
    *,
    title: str,
    evaluations: Sequence[Run],
    ablated: Run | None = None,
    trainings: Sequence[Run] = (),
    gallery: Sequence[AVSample] = (),
    num_clips: int = 24,
    note: str | None = None,
) -> Path:
    """Write the page.

    Args:
        out_html: path of the page.
        title: heading of the page.
        evaluations: evaluations of the same rows: of the model before, of the model after, and of others that are
            compared with the first as well.
        ablated: an evaluation with ablations.
        trainings: trainings whose learning curves are drawn.
        gallery: samples that may be shown, with their media on disk.
        num_clips: largest number of clips that are shown.
        note: sentence under the heading; None for none.

    Returns:
        `out_html`.

    Raises:
        ValueError: if evaluations hold different rows, or two have the same name.
        MediaError: if a shown clip's media cannot be read.
    """
    names = [run.name for run in evaluations]
    if len(set(names)) != len(names) or len(names) < 2:
        raise ValueError(f"the evaluations are called {names}: give two or more, each with a name of its own")
    rows = {run.name: run.results() for run in evaluations}
    first, second = names[:2]
    later = {name: of for name, of in rows.items() if name != first}
    differences = compare_overall(rows[first], rows[second])
    meanings = read_meanings(evaluations[1].folder)

    def shown(names: Sequence[str]) -> dict[str, Measure]:
        return shown_measures(rows[first], (*_OF_OTHER_TASKS, *names), meanings)

    return write_page(
        out_html,
        "training.html.j2",
        title=title,
        note=note,
        first=first,
        second=second,
        num_rows=len(rows[second]),
        headlines=_choose(differences, shown(_HEADLINES)),
        gains=DifferenceTable("", {"": _choose(differences, shown(_GAINS))}, first, second),
        runs=run_table(first, rows[first], later, names=shown(_OF_RUNS)) if len(later) > 1 else None,
        ablations=_ablation_table(ablated, shown(_OF_RUNS)),
        **_score_tables(rows[first], rows[second], shown(_OF_GROUPS)),
        trainings={run.name: draw_curves(read_log_history(run.folder), run.name) for run in trainings},
        clips=render_clips(gallery, {first: rows[first], second: rows[second]}, num_clips),
        measures=shown(list(MEASURES)).values(),
        has_masks=any(row.masks for row in rows[second]),
    )


def _choose(differences: Mapping[str, Difference], names: Iterable[str]) -> list[Difference]:
    """Choose the measures that apply to both runs."""
    return [differences[name] for name in names if name in differences]


def _ablation_table(ablated: Run | None, names: Iterable[str]) -> RunTable | None:
    ablations = ablated.ablations() if ablated else {}
    if ablated is None or not ablations:
        return None
    named = {name.replace("_", " "): rows for name, rows in ablations.items()}
    return run_table(ablated.name, ablated.results(), named, names=names)


def _score_tables(before: Sequence[RowResult], after: Sequence[RowResult], names: Iterable[str]) -> dict[str, object]:
    """Make the tables of both models' scores by groups, under the template's names."""
    of_before, scores = number_tables(before), number_tables(after)

    def by(head: str, name: str) -> ScoreTable:
        return score_table(head, scores["tables"][name], names=names, before=of_before["tables"][name])

    of_splits = MASK_MEASURES if any(row.masks for row in after) else names
    splits, splits_before = (with_mix(of["splits"], of["mix"]) for of in (scores, of_before))
    return {
        "scores": scores,
        "preset": find_preset(scores["preset"]),
        "by_reference_type": by("Reference type", "by_reference_type"),
        "by_category": by("Category", "by_category"),
        "splits": score_table("Split", splits, names=of_splits, before=splits_before),
    }
