"""The measures of an evaluation: each number's function, name on pages, meaning, scale and direction."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from aurora_rl.evaluation.records import CompletionScore, MaskScore, RolloutScore, RowResult

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


def _of_target(value: Callable[[MaskScore], float]) -> RowValue:
    return lambda row: None if row.is_null or row.masks is None else value(row.masks)


def _of_null(value: Callable[[MaskScore], float]) -> RowValue:
    return lambda row: value(row.masks) if row.is_null and row.masks is not None else None


def _of_greedy(value: Callable[[CompletionScore], float | None]) -> RowValue:
    return lambda row: None if row.greedy is None else value(row.greedy)


def _of_sampled(value: Callable[[RolloutScore], float | None]) -> RowValue:
    def mean_of_sampled(row: RowResult) -> float | None:
        known = [number for number in map(value, row.sampled) if number is not None]
        return mean(known) if known else None

    return mean_of_sampled


def _of_score(name: str) -> RowValue:
    return _of_greedy(lambda greedy: greedy.scores.get(name))


def _of_sampled_score(name: str) -> RowValue:
    return _of_sampled(lambda rollout: rollout.scores.get(name))


def _accuracy(completion: CompletionScore | RolloutScore) -> float | None:
    """Return 1 for a right answer, else 0; None where the text score `category` says the same by another name."""
    return None if "category" in completion.scores else float(completion.is_right)


def _sum_of_rewards(rollout: RolloutScore) -> float | None:
    parts = (rollout.scores.get("format"), rollout.scores.get("category"), rollout.iou)
    return None if None in parts else sum(part for part in parts if part is not None)


def _pooled_f(rows: Sequence[RowResult]) -> float | None:
    """Compute the maximum of the mean F curve of the clips with a target; None if the preset has no curves."""
    targets = [row for row in rows if not row.is_null and row.masks is not None]
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
            _of_target(lambda masks: masks.J),
        ),
        Measure("F", "F", "mean over clips of each clip's F-measure", _of_target(lambda masks: masks.F)),
        Measure("J&F", "J&F", "mean of J and F", _of_target(lambda masks: (masks.J + masks.F) / 2)),
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
            _of_null(lambda masks: masks.S),
            lower_is_better=True,
        ),
        Measure(
            "S_per_frame",
            "S, by frame",
            "as S, of each frame, then the mean",
            _of_null(lambda masks: masks.S_per_frame),
            lower_is_better=True,
        ),
        # By the mask: a null reference is right if no pixel is predicted, and a false alarm otherwise.
        Measure(
            "null_accuracy",
            "Null, empty mask",
            "references to nothing where not a pixel is marked",
            _of_null(lambda masks: float(masks.S == 0.0)),
        ),
        Measure(
            "false_alarm_rate",
            "False alarms",
            "references to nothing where something is marked",
            _of_null(lambda masks: float(masks.S > 0.0)),
            lower_is_better=True,
        ),
        # By the words: the answer is that there is no such target.
        Measure(
            "null_answer_accuracy",
            "Null, answer",
            "references to nothing answered 'there is no such target'",
            lambda row: float(row.greedy.is_right) if row.greedy and row.is_null else None,
        ),
        Measure("accuracy", "Accuracy", "the greedy answer is right", _of_greedy(_accuracy)),
        Measure("format_rate", "Format", "four steps, then one final [SEG]", _of_score("format")),
        Measure(
            "category_accuracy",
            "Category",
            "the greedy answer names the right object",
            _of_score("category"),
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
            _of_score("see"),
        ),
        Measure(
            "chain_hear",
            "Hears right",
            "the chain names exactly the sounds, in order",
            _of_score("hear"),
        ),
        Measure(
            "sampled_reward",
            "Sampled reward",
            "format + category + mask IoU of sampled completions",
            _of_sampled(_sum_of_rewards),
            scale=3.0,
        ),
        Measure("sampled_accuracy", "Sampled accuracy", "sampled answers that are right", _of_sampled(_accuracy)),
        *(
            Measure(f"sampled_{name}", f"Sampled {name}", f"{name} of sampled completions", _of_sampled_score(name))
            for name in ("format", "category", "see", "hear")
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
#: The measures by which two systems are compared in groups and on single rows: of masks, of boxes, of words alone.
MAIN_MEASURES = ("J&F", "S", "box_iou", "accuracy")

#: Measures of scores that have another name than the score; every other score is a measure of its own name.
SCORE_MEASURES = {"format": "format_rate", "category": "category_accuracy", "see": "chain_see", "hear": "chain_hear"}
_SAMPLED = "sampled_"


def find_measure(name: str, meanings: Mapping[str, str] | None = None) -> Measure:
    """Return the measure of a name: one of `MEASURES`, or that of a task's own score.

    Args:
        name: key in the tables; of sampled completions it begins with `sampled_`.
        meanings: explanations of a task's own scores by the score's name (`Task.meanings`).
    """
    if name in MEASURES:
        return MEASURES[name]
    score = name.removeprefix(_SAMPLED)
    value = _of_sampled_score(score) if name.startswith(_SAMPLED) else _of_score(score)
    meaning = (meanings or {}).get(score, f"the task's score {score!r}")
    label = name.replace("_", " ")
    return Measure(name, label[:1].upper() + label[1:], meaning, value)


def measures_of(rows: Iterable[RowResult], meanings: Mapping[str, str] | None = None) -> dict[str, Measure]:
    """Return `MEASURES` and the measures of the other scores that rows have, by name, in this order."""
    rows = list(rows)
    greedy = dict.fromkeys(score for row in rows if row.greedy for score in row.greedy.scores)
    sampled = dict.fromkeys(score for row in rows for rollout in row.sampled for score in rollout.scores)
    names = [*(SCORE_MEASURES.get(score, score) for score in greedy), *(f"{_SAMPLED}{score}" for score in sampled)]
    return MEASURES | {name: find_measure(name, meanings) for name in names if name not in MEASURES}
