"""Temporal grounding: a clip and something that may sound in it; short reasoning, then when it sounds. No masks.

    When does the bell sound?      Look: I see a drum and a bell.
                                   Listen: I hear a drum, then a bell.
                                   Answer: 0.8-2.0

The truth is a further column `times` of own clips (`benchmark: clips`), in the words of an answer: "0.5-1.5, 3.0-4.2"
in seconds after the clip's start, or "never". JSON lines may hold `[[0.5, 1.5], [3.0, 4.2]]` and `[]` too.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from aurora_rl.data.sample import AVSample
from aurora_rl.interval_metrics import Span, join_spans, temporal_iou
from aurora_rl.tasks.base import Answer, Target, Task
from aurora_rl.tasks.completions import ParsedCompletion, parse_completion
from aurora_rl.tasks.multiple_choice import ANSWER_LABEL, read_marked
from aurora_rl.tasks.reference_segmentation import hear_score, see_score

NEVER = "never"
#: Overlaps from which an answer counts as found, "R@1, IoU = 0.5" of the field; `is_right` takes `HIT_IOU`.
RECALL_IOUS = (0.3, 0.5, 0.7)
HIT_IOU = 0.5
#: A span in words: "0.5-1.5", "0.5 - 1.5 s", "0.5 to 1.5 seconds".
_NUMBER = r"\d{1,6}(?:\.\d{1,6})?"
_SPAN = re.compile(rf"(?P<start>{_NUMBER}) ?s? ?(?:-|–|to) ?(?P<end>{_NUMBER}) ?(?:s|sec|seconds)?")
_SEPARATOR = re.compile(r" ?(?:,|;|\band\b) ?")


@dataclasses.dataclass(frozen=True)
class TimesAnswer(Answer):
    """A completion as temporal grounding reads it.

    Attributes:
        spans: the times that are answered, in seconds, joined and in order; () for "never", None if unreadable.
        has_form: whether all parts are there once each, in order, with nothing around them.
        reasoning: what the completion says to see and to hear.
    """

    spans: tuple[Span, ...] | None
    has_form: bool
    reasoning: ParsedCompletion

    @property
    def value(self) -> str | None:
        """The times in words."""
        return None if self.spans is None else times_text(self.spans)


class TemporalGrounding(Task):
    """Tell when something sounds, after a look and a listen."""

    head = None
    instruction = (
        "Watch the frames and listen to the sound.\nWhen does {reference} sound?\nReason in short paragraphs, then "
        "answer.\nLook: what you see in the frames.\nListen: what you hear, in order.\nAnswer: from when to when in "
        f"seconds, such as 0.5-1.5, 3.0-4.2; or {NEVER}."
    )
    curves: ClassVar[Mapping[str, str]] = {"accuracy": "accuracy/{kind}", "iou": "iou", "hear": "chain/hear"}
    meanings: ClassVar[Mapping[str, str]] = {
        "readable": "the marked answer is times or 'never'",
        "iou": "temporal intersection over union of the answer and the truth; nothing and nothing agree",
        **{f"recall_{iou}": f"share of answers with a temporal IoU of {iou} or more" for iou in RECALL_IOUS},
    }

    def target(self, sample: AVSample) -> Target:
        reasoning = [sample.chain.strip()] if sample.chain else []
        return Target("\n".join([*reasoning, f"{ANSWER_LABEL} {times_text(true_times(sample))}"]))

    def parse(self, text: str) -> TimesAnswer:
        reasoning = parse_completion(text)
        marked, has_form = read_marked(text, reasoning)
        return TimesAnswer(text, None if marked is None else read_times(marked), has_form, reasoning)

    def check_truth(self, sample: AVSample) -> None:
        true_times(sample)

    def is_right(self, answer: Answer, sample: AVSample) -> bool:
        return overlap(answer, sample) >= HIT_IOU

    def text_scores(self, answer: Answer, sample: AVSample) -> dict[str, float | None]:
        read, iou = as_times(answer), overlap(answer, sample)
        return {
            "format": float(read.has_form),
            "readable": float(read.spans is not None),
            "accuracy": float(iou >= HIT_IOU),
            "iou": iou,
            **{f"recall_{least}": float(iou >= least) for least in RECALL_IOUS},
            "see": see_score(read.reasoning, sample),
            "hear": hear_score(read.reasoning, sample),
        }


def overlap(answer: Answer, sample: AVSample) -> float:
    """Return the temporal IoU of an answer and a row's truth; 0.0 where the answer cannot be read."""
    spans = as_times(answer).spans
    return 0.0 if spans is None else temporal_iou(spans, true_times(sample))


def read_times(text: str) -> tuple[Span, ...] | None:
    """Read times in words, in seconds; None where the text is anything else.

    >>> read_times("0.5-1.5, and 3 to 4.2 seconds."), read_times("Never"), read_times("at 2.0")
    (((0.5, 1.5), (3.0, 4.2)), (), None)
    """
    text = " ".join(text.strip().rstrip(".").lower().split())
    if text == NEVER:
        return ()
    parts = [part for part in _SEPARATOR.split(text) if part]
    found = [_SPAN.fullmatch(part) for part in parts]
    spans = [(float(match["start"]), float(match["end"])) for match in found if match is not None]
    if not spans or len(spans) < len(found) or any(end <= start for start, end in spans):
        return None
    return tuple(join_spans(spans))


def times_text(spans: Sequence[Span]) -> str:
    """Write times in words, to a tenth of a second.

    >>> times_text([(0.5, 1.5), (3.0, 4.21)]), times_text([])
    ('0.5-1.5, 3.0-4.2', 'never')
    """
    return ", ".join(f"{start:.1f}-{end:.1f}" for start, end in spans) or NEVER


def true_times(sample: AVSample) -> tuple[Span, ...]:
    """Return when a row's object sounds; a ValueError names a row whose `times` are missing or cannot be read."""
    given = sample.extra_columns.get("times")
    spans = read_times(given) if isinstance(given, str) else _read_pairs(given)
    if spans is None:
        raise ValueError(
            f"sample {sample.key} ({sample.origin}) has the times {given!r}: expected a column `times` such as "
            f"'0.5-1.5, 3.0-4.2', or '{NEVER}'"
        )
    return spans


def _read_pairs(given: Any) -> tuple[Span, ...] | None:
    """Read a list of [start, end]; None where it is anything else."""
    if not isinstance(given, list):
        return None
    for pair in given:
        is_pair = isinstance(pair, list) and len(pair) == 2 and all(type(time) in (int, float) for time in pair)
        if not is_pair or not all(map(math.isfinite, pair)) or not 0 <= pair[0] < pair[1]:
            return None
    return tuple(join_spans([(float(start), float(end)) for start, end in given]))


def as_times(answer: Answer) -> TimesAnswer:
    """Return an answer of this task unchanged; a TypeError tells that it is another task's."""
    if not isinstance(answer, TimesAnswer):
        raise TypeError(f"this reads answers of temporal grounding, not {type(answer).__name__}")
    return answer
