"""What an evaluation leaves behind: one `SampleResult` a row of the benchmark, kept as a line of a JSONL file.

Evaluation writes these files; summaries, gains with their intervals and the report are made from the files alone.
The saved masks can be scored again, under another preset or beside another system's, without a model.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aurora_rl.data.run_lengths import MaskRle
from aurora_rl.data.sample import NULL_CATEGORY
from aurora_rl.files.atomic import whole_file
from aurora_rl.files.plain import check_plain_file, parse_record


@dataclasses.dataclass(frozen=True)
class MaskScore:
    """How well one clip's predicted masks cover its truth, under a preset of `evaluation.PRESETS`.

    Attributes:
        J: region similarity, mean over frames.
        F: maximum of `f_curve`; of preset `davis`, F of the outlines, mean over frames.
        f_curve: F at each of the 255 thresholds, mean over the frames whose truth is not empty; empty of a missing
            prediction and of preset `davis`.
        S: sqrt(predicted pixels / all pixels) of the clip; the measure of null references.
        S_frames: mean over frames of each frame's S, the other way to pool.
        is_missing: whether there are no masks (no `[SEG]`, no file), so that an empty mask was scored.
    """

    J: float
    F: float
    f_curve: tuple[float, ...]
    S: float
    S_frames: float
    is_missing: bool


@dataclasses.dataclass(frozen=True)
class ClipScore(MaskScore):
    """A completion's masks, scored.

    Attributes:
        iou: the mask-IoU reward, masks at p > 0.5 and at the frames' own size; 0 where there is no prediction.
    """

    iou: float


@dataclasses.dataclass(frozen=True)
class CompletionScore:
    """A greedy completion and all that is measured on it. None means that a measure does not apply.

    Attributes:
        text: the completion as generated.
        category: the category it answers, normalised; None if it answers none.
        format: 1 if the four steps are there and "It is [SEG]." ends the text, its only `[SEG]`; otherwise 0.
        category_correct: 1 if `category` is the truth, otherwise 0.
        see: 1 if exactly the true objects are named as seen, each once; None where the truth is unknown.
        hear: 1 if exactly the true sounds are named, in order; None where the truth is unknown.
        clip: scores of the masks.
        pred_masks: F masks at p > 0.5 and at the frames' own size.
        preset_masks: F masks at the preset's resolution and J threshold, from which J can be computed again.
    """

    text: str
    category: str | None
    format: float
    category_correct: float
    see: float | None
    hear: float | None
    clip: ClipScore
    pred_masks: tuple[MaskRle, ...]
    preset_masks: tuple[MaskRle, ...]


@dataclasses.dataclass(frozen=True)
class RolloutScore:
    """Rewards of one sampled completion, each in [0, 1]."""

    format: float
    category: float
    iou: float

    @property
    def total(self) -> float:
        """Sum of the three, of 3."""
        return self.format + self.category + self.iou


@dataclasses.dataclass(frozen=True)
class SampleResult:
    """One row of the benchmark with what the model made of it.

    Attributes:
        uid: as in `AVSample`; not unique across a file.
        row: as in `AVSample`; `uid` and `row` together are unique.
        split: as in `AVSample`.
        media_id: the clip, shared by all rows that ask about it.
        category: the true category, `"null"` where the reference points at nothing.
        reference: the referring sentence.
        reference_type: kind of reference, where the benchmark tells.
        preset: name of the evaluation preset the scores were computed under.
        greedy: the greedy completion.
        sampled: completions drawn at the training temperature, where they were asked for.
    """

    uid: str
    row: int
    split: str
    media_id: str
    category: str
    reference: str
    reference_type: str | None
    preset: str
    greedy: CompletionScore
    sampled: tuple[RolloutScore, ...] = ()

    @property
    def key(self) -> str:
        """`uid` and `row`, as `AVSample.key`."""
        return f"{self.uid}#{self.row}"

    @property
    def is_null(self) -> bool:
        """Whether the reference points at nothing."""
        return self.category == NULL_CATEGORY


def write_results(path: str | Path, results: Iterable[SampleResult]) -> None:
    """Write results as JSONL, one row a line, whole or not at all, making the folder if need be."""
    with whole_file(path) as file:
        for result in results:
            file.write(f"{json.dumps(dataclasses.asdict(result), ensure_ascii=False)}\n".encode())


def read_results(path: str | Path, *, malformed: list[str] | None = None) -> list[SampleResult]:
    """Read what `write_results` wrote.

    Args:
        path: the file.
        malformed: takes the trouble of each line that is no result, or of a row that is there already; None makes the
            first such line an error.

    Raises:
        ValueError: if a line is no result, or a row is there twice; the message names the line.
    """
    results: dict[str, SampleResult] = {}
    for place, line in _lines(path):
        try:
            result = _result_of(place, line)
            if result.key in results:
                raise ValueError(f"{place} holds row {result.key!r} a second time: evaluate into a fresh file")
        except ValueError as error:
            if malformed is None:
                raise
            malformed.append(str(error))
        else:
            results[result.key] = result
    return list(results.values())


def _result_of(place: str, line: bytes) -> SampleResult:
    try:
        return result_from_record(parse_record(line))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{place} is no evaluation result ({error}): evaluate again") from error


def _lines(path: str | Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a file that are not empty, with their places, `file:line`."""
    check_plain_file(path)
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path}:{number}", line


def result_from_record(record: Mapping[str, Any]) -> SampleResult:
    """The result of a line of JSON."""
    if type(record["row"]) is not int or record["row"] < 0:
        raise ValueError(f"row is {record['row']!r}: expected a number from 0")
    if not all(isinstance(record[name], str) for name in ("uid", "split", "media_id", "category", "reference")):
        raise ValueError("uid, split, media_id, category and reference must be texts")
    greedy = dict(record["greedy"])
    clip = dict(greedy["clip"])
    greedy["clip"] = ClipScore(**{**clip, "f_curve": tuple(clip["f_curve"])})
    masks = {name: tuple(greedy[name]) for name in ("pred_masks", "preset_masks")}
    sampled = tuple(RolloutScore(**rollout) for rollout in record["sampled"])
    return SampleResult(**{**record, "greedy": CompletionScore(**{**greedy, **masks}), "sampled": sampled})
