"""Results of an evaluation: one `RowResult` a row of the benchmark, for a model or for saved masks.

results.jsonl    one line a row, from which two systems are compared and pages are made
scores.json      the numbers of each split, both kinds of Mix, tables and intervals (`tables.score_tables`)

{"uid": "abc_cat_1", "row": 17, "split": "test_s", ..., "reference": "The cat.", "preset": "refavs", "J": 0.81, ...}

A model's rows hold its greedy completion with the masks as COCO run lengths, which can be scored under another preset
without the model; rows of saved masks hold only the masks' scores.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.data.reference_types import reference_type_of
from aurora_rl.data.run_lengths import MaskRle
from aurora_rl.data.sample import NULL_CATEGORY, AVSample
from aurora_rl.files.atomic import whole_file, whole_files
from aurora_rl.files.plain import check_plain_file, parse_record

RESULTS_FILE, SCORES_FILE = "results.jsonl", "scores.json"


@dataclasses.dataclass(frozen=True)
class MaskScore:
    """Scores of one clip's predicted masks, under a preset of `presets.PRESETS`.

    Attributes:
        J: region similarity, mean over frames.
        F: maximum of `f_curve`; of preset `davis`, F of the outlines, mean over frames.
        f_curve: F at each of the 255 thresholds, mean over the frames whose truth is not empty; no values for a missing
            prediction and for preset `davis`.
        S: sqrt(predicted pixels / all pixels) of the clip; the measure of null references.
        S_per_frame: mean of the frames' S, the other definition.
        is_missing: whether there are no masks (no `[SEG]`, no file), so that an empty mask was scored.
    """

    J: float
    F: float
    f_curve: tuple[float, ...]
    S: float
    S_per_frame: float
    is_missing: bool


@dataclasses.dataclass(frozen=True)
class CompletionScore:
    """A greedy completion and its scores. None means that a measure does not apply.

    Attributes:
        text: the completion as generated.
        category: normalised category of the answer; None if it names none.
        format: 1 if the text has the four steps and ends with "It is [SEG].", its only `[SEG]`; otherwise 0.
        category_correct: 1 if `category` is the truth, otherwise 0.
        see: 1 if exactly the true objects are named as seen, each once; None if the truth is unknown.
        hear: 1 if exactly the true sounds are named, in order; None if the truth is unknown.
        iou: mask-IoU reward of masks at p > 0.5 and the frames' own size; 0 without a prediction.
        pred_masks: F masks at p > 0.5 and the frames' own size.
        preset_masks: F masks at the preset's resolution and J threshold, from which J can be computed again.
    """

    text: str
    category: str | None
    format: float
    category_correct: float
    see: float | None
    hear: float | None
    iou: float
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
        """Sum of the three rewards, at most 3."""
        return self.format + self.category + self.iou


@dataclasses.dataclass(frozen=True)
class RowResult:
    """One row of the benchmark with its scores.

    Attributes:
        uid: uid of the sample; not unique across a file.
        row: row of the sample; `uid` and `row` together are unique.
        split: split of the sample.
        media_id: id of the clip, shared by all rows that ask about it.
        category: true category, `"null"` if the reference matches nothing.
        reference: referring sentence.
        reference_type: type of reference, from the benchmark, its chains, or the sentence.
        type_is_derived: whether the type is derived from the sentence (`reference_type_of`).
        preset: name of the preset of the scores.
        J: J of the masks, see `MaskScore`, also for `F`, `f_curve`, `S`, `S_per_frame` and `is_missing`.
        greedy: greedy completion; None if no model was asked.
        sampled: completions drawn at the training temperature, if the evaluation draws them.
        novelty: "seen" if the training split has the category, or "new"; None for a null reference, and if the
            training split's categories are unknown (`tables.mark_novelty`).
    """

    uid: str
    row: int
    split: str
    media_id: str
    category: str
    reference: str
    reference_type: str
    type_is_derived: bool
    preset: str
    J: float
    F: float
    f_curve: tuple[float, ...]
    S: float
    S_per_frame: float
    is_missing: bool
    greedy: CompletionScore | None = None
    sampled: tuple[RolloutScore, ...] = ()
    novelty: str | None = None

    @classmethod
    def of_sample(
        cls,
        sample: AVSample,
        score: MaskScore,
        *,
        preset: str,
        greedy: CompletionScore | None = None,
        sampled: Sequence[RolloutScore] = (),
    ) -> RowResult:
        """Join a row of the benchmark with its scores."""
        reference_type, is_derived = reference_type_of(sample.reference, sample.category, sample.reference_type)
        return cls(
            uid=sample.uid,
            row=sample.row,
            split=sample.split,
            media_id=sample.media_id,
            category=sample.category,
            reference=sample.reference,
            reference_type=reference_type,
            type_is_derived=is_derived,
            preset=preset,
            **vars(score),
            greedy=greedy,
            sampled=tuple(sampled),
        )

    @property
    def key(self) -> str:
        """Key from `uid` and `row`, as `AVSample.key`."""
        return f"{self.uid}#{self.row}"

    @property
    def is_null(self) -> bool:
        """Whether the reference matches nothing."""
        return self.category == NULL_CATEGORY

    @property
    def completion(self) -> CompletionScore:
        """The greedy completion.

        Raises:
            ValueError: if no model was asked.
        """
        if self.greedy is None:
            raise ValueError(f"row {self.key!r} has the scores of saved masks alone: give the results of a model")
        return self.greedy


# ------------------------------------------------------------------------------------------------ files


def results_file(path: str | Path) -> Path:
    """Return the JSON-lines file of an evaluation, given its folder, its scores or the file itself.

    Version 0.1 kept the rows of an `out.json` in an `out.jsonl` beside it.
    """
    path = Path(path)
    if path.is_dir():
        return path / RESULTS_FILE
    if path.suffix != ".json":
        return path
    beside = path.with_name(path.name.replace("scores", "results", 1)).with_suffix(".jsonl")
    return beside if beside.exists() else path.with_suffix(".jsonl")


def write_results(path: str | Path, results: Iterable[RowResult]) -> None:
    """Write results as JSONL, one row a line, whole or not at all; a missing folder is made."""
    with whole_file(path) as file:
        file.writelines(map(_line_of, results))


def write_evaluation(
    folder: Path, results: Iterable[RowResult], scores: Mapping[str, Any], *, ablation: str = ""
) -> None:
    """Write results.jsonl and scores.json into a folder, both whole or not at all.

    Args:
        folder: folder of the files; it is made if it is missing.
        results: rows, which are written in the order of the benchmark's table.
        scores: result of `tables.score_tables`, with any other keys of scores.json.
        ablation: name of the ablation, a part of the files' names; empty if there was none.
    """
    names = (RESULTS_FILE, SCORES_FILE) if not ablation else (f"results.{ablation}.jsonl", f"scores.{ablation}.json")
    with whole_files(*(folder / name for name in names)) as (results_out, scores_out):
        results_out.writelines(map(_line_of, sorted(results, key=lambda result: (result.row, result.uid))))
        scores_out.write(f"{json.dumps(scores, indent=2, ensure_ascii=False)}\n".encode())


def _line_of(result: RowResult) -> bytes:
    return f"{json.dumps(dataclasses.asdict(result), ensure_ascii=False)}\n".encode()


def read_results(path: str | Path, *, malformed: list[str] | None = None) -> list[RowResult]:
    """Read an evaluation's rows, also those that version 0.1 has written.

    Args:
        path: path of the file, of scores.json beside it, or of their folder.
        malformed: list to which the problem of each invalid line and repeated row is appended; None makes the first
            one an error.

    Raises:
        ValueError: if there is no such file, a line is invalid, or a row is repeated; the message names the line.
    """
    file = results_file(path)
    if not file.exists():
        raise ValueError(f"there is no {file}: give a folder that `aurora-rl evaluate` wrote, with its {RESULTS_FILE}")
    results: dict[str, RowResult] = {}
    for place, line in _lines(file):
        try:
            result = _result_of(place, line)
            if result.key in results:
                raise ValueError(f"{place} holds row {result.key!r} a second time: evaluate again")
        except ValueError as error:
            if malformed is None:
                raise
            malformed.append(str(error))
        else:
            results[result.key] = result
    return list(results.values())


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the lines of a file that are not empty, with their places, `file:line`."""
    check_plain_file(path)
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path}:{number}", line


def _result_of(place: str, line: bytes) -> RowResult:
    try:
        return result_from_record(parse_record(line))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{place} is no evaluation result ({error}): evaluate again") from error


def result_from_record(record: Mapping[str, Any]) -> RowResult:
    """Make the result from a record of a file, also of version 0.1."""
    record = _translate_earlier(record)
    if type(record["row"]) is not int or record["row"] < 0:
        raise ValueError(f"row is {record['row']!r}: expected a number from 0")
    if not all(isinstance(record[name], str) for name in ("uid", "split", "media_id", "category", "reference")):
        raise ValueError("uid, split, media_id, category and reference must be texts")
    if not all(isinstance(record[name], int | float) for name in ("J", "F", "S", "S_per_frame")):
        raise ValueError("J, F, S and S_per_frame must be numbers")
    sampled = tuple(RolloutScore(**rollout) for rollout in record["sampled"])
    greedy = record["greedy"]
    if greedy is not None:
        masks = {name: tuple(greedy[name]) for name in ("pred_masks", "preset_masks")}
        greedy = CompletionScore(**{**greedy, **masks})
    return RowResult(**{**record, "f_curve": tuple(record["f_curve"]), "greedy": greedy, "sampled": sampled})


def _translate_earlier(record: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a record of version 0.1 to the current form; it had two forms, for a model and for saved masks."""
    if "J" not in record:  # results.jsonl: the completion held the masks' scores
        clip = dict(record["greedy"]["clip"])
        greedy = {name: value for name, value in record["greedy"].items() if name != "clip"} | {"iou": clip.pop("iou")}
        told = reference_type_of(record["reference"], record["category"], record["reference_type"])
        types = dict(zip(("reference_type", "type_is_derived"), told, strict=True))
        return {**record, **types, "S_per_frame": clip.pop("S_frames"), **clip, "greedy": greedy}
    if "missing" in record:  # out.jsonl: only scores
        names = {"text": "reference", "missing": "is_missing"}
        renamed = {names.get(name, name): value for name, value in record.items() if name != "completion"}
        return {**renamed, "f_curve": (), "greedy": None, "sampled": ()}
    return dict(record)
