"""The measures of an evaluation: each number's function, name on pages, meaning, scale and direction."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

from aurora_rl.evaluation.records import CompletionScore, RolloutScore, RowResult

RowValue = Callable[[RowResult], float | None]


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number of the tables: the mean of the rows' values, unless `of_rows` is set.

    Attributes:
        name: key in the tables.
        label: heading on a page.
        meaning: explanation in a few words.
        value: function that returns a row's number, or None if the measure does not apply to the row.
        of_rows: function that returns the number of several rows if it is not the mean; it then has no interval.
        scale: best possible value, or the worst if lower is better.
        lower_is_better: whether a smaller number is the better one.
    """

    name: str
    label: str
    meaning: str
    value: RowValue
    of_rows: Callable[[Sequence[RowResult]], float | None] | None = None
    scale: float = 1.0
    lower_is_better: bool = False

    def pairs(self, rows: Iterable[RowResult]) -> list[tuple[RowResult, float]]:
        """Return the rows that the measure applies to, each with its number."""
        pairs = ((row, self.value(row)) for row in rows)
        return [(row, value) for row, value in pairs if value is not None]

    def values(self, rows: Iterable[RowResult]) -> dict[str, float]:
        """Return the numbers of the rows that the measure applies to, by the row's key."""
        return {row.key: value for row, value in self.pairs(rows)}

    def over(self, rows: Sequence[RowResult]) -> float | None:
        """Compute the number of several rows; None if the measure applies to none of them."""
        if self.of_rows is not None:
            return self.of_rows(rows)
        pairs = self.pairs(rows)
        return mean(value for _, value in pairs) if pairs else None


def mean(values: Iterable[float]) -> float:
    """Compute the mean; the sum is rounded once, so that the order of the rows changes no digit."""
    values = list(values)
    return math.fsum(values) / len(values)


def _of_target(value: Callable[[RowResult], float]) -> RowValue:
    return lambda row: None if row.is_null else value(row)


def _of_null(value: Callable[[RowResult], float]) -> RowValue:
    return lambda row: value(row) if row.is_null else None


def _of_greedy(value: Callable[[CompletionScore], float | None]) -> RowValue:
    return lambda row: None if row.greedy is None else value(row.greedy)


def _of_sampled(value: Callable[[RolloutScore], float]) -> RowValue:
    return lambda row: mean(map(value, row.sampled)) if row.sampled else None


def _pooled_f(rows: Sequence[RowResult]) -> float | None:
    """Compute the maximum of the mean F curve of the clips with a target; None if the preset has no curves."""
    targets = [row for row in rows if not row.is_null]
    curves = [row.f_curve for row in targets if row.f_curve]
    if not curves and not (targets and all(row.is_missing for row in targets)):
        return None
    # A missing prediction has no curve and adds 0 at every threshold.
    return max((math.fsum(column) / len(targets) for column in zip(*curves, strict=True)), default=0.0)


#: All measures by name: of masks, then of a model's completions.
MEASURES = {
    measure.name: measure
    for measure in (
        Measure(
            "J",
            "J",
            "region similarity, the mean over frames of intersection over union",
            _of_target(lambda row: row.J),
        ),
        Measure("F", "F", "mean over clips of each clip's F-measure", _of_target(lambda row: row.F)),
        Measure("J&F", "J&F", "mean of J and F", _of_target(lambda row: (row.J + row.F) / 2)),
        Measure(
            "F_pooled",
            "F, one threshold",
            "maximum over thresholds of the mean curve of all clips",
            lambda row: None,
            of_rows=_pooled_f,
        ),
        Measure(
            "S",
            "S",
            "of references to nothing: share of the clip that is wrongly marked, square root",
            _of_null(lambda row: row.S),
            lower_is_better=True,
        ),
        Measure(
            "S_per_frame",
            "S, by frame",
            "as S, of each frame, then the mean",
            _of_null(lambda row: row.S_per_frame),
            lower_is_better=True,
        ),
        # By the mask: a null reference is right if no pixel is predicted, and a false alarm otherwise.
        Measure(
            "null_accuracy",
            "Null, empty mask",
            "references to nothing where not a pixel is marked",
            _of_null(lambda row: float(row.S == 0.0)),
        ),
        Measure(
            "false_alarm_rate",
            "False alarms",
            "references to nothing where something is marked",
            _of_null(lambda row: float(row.S > 0.0)),
            lower_is_better=True,
        ),
        # By the words: the answer is that there is no such target.
        Measure(
            "null_answer_accuracy",
            "Null, answer",
            "references to nothing answered 'there is no such target'",
            lambda row: row.greedy.category_correct if row.greedy and row.is_null else None,
        ),
        Measure("format_rate", "Format", "four steps, then one final [SEG]", _of_greedy(lambda greedy: greedy.format)),
        Measure(
            "category_accuracy",
            "Category",
            "the greedy answer names the right object",
            _of_greedy(lambda greedy: greedy.category_correct),
        ),
        Measure(
            "greedy_iou",
            "Mask IoU",
            "of greedy completions; 1 − S where nothing is referred to",
            _of_greedy(lambda greedy: greedy.iou),
        ),
        Measure(
            "non_null_iou",
            "Mask IoU, targets only",
            "of greedy completions whose reference has a target",
            lambda row: row.greedy.iou if row.greedy and not row.is_null else None,
        ),
        Measure(
            "chain_see",
            "Sees right",
            "the chain names exactly the objects in view",
            _of_greedy(lambda greedy: greedy.see),
        ),
        Measure(
            "chain_hear",
            "Hears right",
            "the chain names exactly the sounds, in order",
            _of_greedy(lambda greedy: greedy.hear),
        ),
        Measure(
            "sampled_reward",
            "Sampled reward",
            "format + category + mask IoU of sampled completions",
            _of_sampled(lambda rollout: rollout.total),
            scale=3.0,
        ),
        Measure(
            "sampled_format",
            "Sampled format",
            "format of sampled completions",
            _of_sampled(lambda rollout: rollout.format),
        ),
        Measure(
            "sampled_category",
            "Sampled category",
            "category of sampled completions",
            _of_sampled(lambda rollout: rollout.category),
        ),
        Measure(
            "sampled_iou", "Sampled IoU", "mask IoU of sampled completions", _of_sampled(lambda rollout: rollout.iou)
        ),
    )
}

#: Measures of Mix, which apply to rows that refer to something.
TARGET_MEASURES = ("J", "F", "J&F", "F_pooled")
#: Measures of masks only, for any system.
MASK_MEASURES = (*TARGET_MEASURES, "S", "S_per_frame", "null_accuracy", "false_alarm_rate")
