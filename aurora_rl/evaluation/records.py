"""Results of an evaluation: one `RowResult` a row of the benchmark, for a model or for saved masks.

results.jsonl    one line a row, from which two systems are compared and pages are made
scores.json      the numbers of each split, both kinds of Mix, tables and intervals (`tables.score_tables`)

{"uid": "abc_cat_1", "row": 17, "split": "test_s", ..., "reference": "The cat.", "preset": "refavs", "J": 0.81, ...}

A model's rows hold its greedy completion with the masks as COCO run lengths, which can be scored under another preset
without the model; rows of saved masks hold only the masks' scores. Rows of a task without masks have null in their
place, and the task's scores by name:

{"uid": "abc_2", ..., "J": null, ..., "greedy": {"text": "B", "value": "B", "is_right": true, "scores": {...}, ...}}
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.data.questions import MAX_CHOICES
from aurora_rl.data.reference_types import reference_type_of
from aurora_rl.data.run_lengths import MaskRle
from aurora_rl.data.sample import NULL_CATEGORY, AVSample
from aurora_rl.files.atomic import whole_file, whole_files
from aurora_rl.files.plain import check_plain_file, parse_json, parse_record, read_text_file

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


#: Scores by name, each in [0, 1]; None where a score does not apply to the row.
Scores = Mapping[str, float | None]


@dataclasses.dataclass(frozen=True)
class CompletionScore:
    """A greedy completion and its scores.

    Attributes:
        text: the completion as generated.
        value: what is answered, in the task's spelling (`Answer.value`); None if the text holds no answer.
        is_right: whether the answer's words are the row's truth.
        scores: the task's scores of the words (`Task.text_scores`), and those of a head that predicts something else
            than masks.
        iou: mask-IoU reward of masks at p > 0.5 and the frames' own size, 0 without a prediction; None for a task
            without masks, and for a row whose true masks are not known.
        pred_masks: F masks at p > 0.5 and the frames' own size; none of a task without masks.
        preset_masks: F masks at the preset's resolution and J threshold, from which J can be computed again.
        chosen: index of the option that the answer means; None where it is none of them, or there are no options.
    """

    text: str
    value: str | None
    is_right: bool
    scores: Scores
    iou: float | None = None
    pred_masks: tuple[MaskRle, ...] = ()
    preset_masks: tuple[MaskRle, ...] = ()
    chosen: int | None = None


@dataclasses.dataclass(frozen=True)
class RolloutScore:
    """Scores of one sampled completion; the attributes are those of `CompletionScore`."""

    is_right: bool
    scores: Scores
    iou: float | None = None


@dataclasses.dataclass(frozen=True)
class RowResult:
    """One row of the benchmark with its scores.

    Attributes:
        uid: uid of the sample; not unique across a file.
        row: row of the sample; `uid` and `row` together are unique.
        split: split of the sample.
        media_id: id of the clip, shared by all rows that ask about it.
        category: true category, `"null"` if the reference matches nothing.
        reference: referring sentence, or question.
        reference_type: type of reference, from the benchmark, its chains, or the sentence; None for a question whose
            type nobody tells.
        type_is_derived: whether the type is derived from the sentence (`reference_type_of`).
        preset: name of the preset of the scores.
        J: J of the masks, see `MaskScore`, also for `F`, `f_curve`, `S`, `S_per_frame` and `is_missing`; None (no
            values, False) where no masks are scored.
        greedy: greedy completion; None if no model was asked.
        sampled: completions drawn at the training temperature, if the evaluation draws them.
        novelty: "seen" if the training split has the category, or "new"; None for a null reference, and if the
            training split's categories are unknown (`tables.mark_novelty`).
        answer: true answer of a question that is answered in words; None for other rows.
        choices: options of a multiple-choice question in the order of their letters; None for other rows.
        dataset: name of the row's data set among several of a run; empty otherwise.
    """

    uid: str
    row: int
    split: str
    media_id: str
    category: str
    reference: str
    reference_type: str | None
    type_is_derived: bool
    preset: str
    J: float | None = None
    F: float | None = None
    f_curve: tuple[float, ...] = ()
    S: float | None = None
    S_per_frame: float | None = None
    is_missing: bool = False
    greedy: CompletionScore | None = None
    sampled: tuple[RolloutScore, ...] = ()
    novelty: str | None = None
    answer: str | None = None
    choices: tuple[str, ...] | None = None
    dataset: str = ""

    @classmethod
    def of_sample(
        cls,
        sample: AVSample,
        score: MaskScore | None,
        *,
        preset: str,
        greedy: CompletionScore | None = None,
        sampled: Sequence[RolloutScore] = (),
    ) -> RowResult:
        """Join a row of the benchmark with its scores; `score` is None where no masks are scored."""
        reference_type, is_derived = _type_of(sample)
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
            **(vars(score) if score is not None else {}),
            greedy=greedy,
            sampled=tuple(sampled),
            answer=sample.answer,
            choices=sample.choices,
            dataset=sample.dataset,
        )

    @property
    def key(self) -> str:
        """Key from `uid` and `row`, as `AVSample.key`."""
        return f"{self.dataset}/{self.uid}#{self.row}" if self.dataset else f"{self.uid}#{self.row}"

    @property
    def is_null(self) -> bool:
        """Whether the reference matches nothing."""
        return self.category == NULL_CATEGORY

    @property
    def is_unreadable(self) -> bool:
        """Whether a model's answer cannot be read: it holds none, or none of the question's options."""
        if self.greedy is None:
            return False
        return self.greedy.value is None or (self.choices is not None and self.greedy.chosen is None)

    @property
    def masks(self) -> MaskScore | None:
        """The scores of the masks; None where no masks are scored."""
        if self.J is None or self.F is None or self.S is None or self.S_per_frame is None:
            return None
        return MaskScore(self.J, self.F, self.f_curve, self.S, self.S_per_frame, self.is_missing)

    @property
    def completion(self) -> CompletionScore:
        """The greedy completion.

        Raises:
            ValueError: if no model was asked.
        """
        if self.greedy is None:
            raise ValueError(f"row {self.key!r} has the scores of saved masks alone: give the results of a model")
        return self.greedy


def _type_of(sample: AVSample) -> tuple[str | None, bool]:
    """Return a row's type, and whether it is derived; the words of a question are no reference, and tell none."""
    if sample.answer is not None:
        return sample.reference_type, False
    return reference_type_of(sample.reference, sample.category, sample.reference_type)


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


def read_meanings(path: str | Path) -> dict[str, str]:
    """Read what a task's own scores mean, by name, from the scores.json of an evaluation; none where there is none.

    Args:
        path: path of the evaluation, as in `results_file`.

    Raises:
        ValueError: if scores.json is damaged.
    """
    return {name: str(meaning) for name, meaning in _read_of_scores(path, "meanings").items()}


def asked_differently(first: str | Path, second: str | Path) -> list[str]:
    """Name what two evaluations' models were asked otherwise, such as "instruction"; nothing where that is unknown.

    Args:
        first, second: paths of the evaluations, as in `results_file`.

    Raises:
        ValueError: if a scores.json is damaged.
    """
    one, other = (_read_of_scores(path, "asked") for path in (first, second))
    if not one or not other:
        return []
    # What is not there was not used: an evaluation without tools has no key of theirs.
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _read_of_scores(path: str | Path, name: str) -> dict[str, Any]:
    """Return one mapping of an evaluation's scores.json; an empty one where there is none."""
    results = results_file(path)
    scores = results.with_name(results.name.replace("results", "scores", 1)).with_suffix(".json")
    if not scores.is_file():
        return {}
    try:
        content = parse_json(read_text_file(scores))
    except ValueError as error:
        raise ValueError(f"{scores} is no JSON ({error}): evaluate again") from error
    found = content.get(name, {}) if isinstance(content, dict) else {}
    if not isinstance(found, dict):
        raise ValueError(f"{scores} has {name} that are a {type(found).__name__}: evaluate again")
    return found


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
    return f"{json.dumps(record_of(result), ensure_ascii=False)}\n".encode()


#: Text scores of reference segmentation by the keys that they have had in results.jsonl since version 0.1.
_REFERENCE_KEYS = {"format": "format", "category_correct": "category", "see": "see", "hear": "hear"}


def record_of(result: RowResult) -> dict[str, Any]:
    """Make the record of a file; that of reference segmentation has a key for each score, any other has `scores`."""
    record = dataclasses.asdict(result)
    if result.greedy is not None and _has_scores(result.greedy, _REFERENCE_KEYS.values()):
        record["greedy"] = _reference_record(record["greedy"])
    record["sampled"] = [
        {**rollout.scores, "iou": rollout.iou} if _has_scores(rollout, ("format", "category")) else scores
        for rollout, scores in zip(result.sampled, record["sampled"], strict=True)
    ]
    if result.choices is None:
        del record["choices"]
    if result.greedy is not None and result.greedy.chosen is None:
        record["greedy"].pop("chosen", None)
    if result.answer is None:
        del record["answer"]
    if not result.dataset:
        del record["dataset"]
    return record


def _has_scores(completion: CompletionScore | RolloutScore, names: Iterable[str]) -> bool:
    """Tell whether these are scores of reference segmentation: at least `names`, no others, and right by category."""
    known = _REFERENCE_KEYS.values()
    is_reference = set(names) <= completion.scores.keys() <= set(known)
    return is_reference and completion.is_right == (completion.scores["category"] == 1.0)


def _reference_record(greedy: Mapping[str, Any]) -> dict[str, Any]:
    scores = {key: greedy["scores"][name] for key, name in _REFERENCE_KEYS.items()}
    masks = {key: greedy[key] for key in ("iou", "pred_masks", "preset_masks")}
    return {"text": greedy["text"], "category": greedy["value"], **scores, **masks}


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
        of_sets = [each.parent.name for each in sorted(file.parent.glob(f"*/{RESULTS_FILE}"))]
        one = f"; it holds the folders of several data sets, give one: {', '.join(of_sets)}" if of_sets else ""
        raise ValueError(
            f"there is no {file}: give a folder that `aurora-rl evaluate` wrote, with its {RESULTS_FILE}{one}"
        )
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
    _check_kinds(record, str, "uid", "split", "media_id", "category", "reference", "preset")
    _check_kinds(record, str | None, "reference_type", "novelty", "answer")
    _check_kinds(record, str, "dataset", default="")
    _check_kinds(record, bool, "type_is_derived", "is_missing")
    _check_kinds(record, list | tuple, "f_curve")
    check_numbers({name: record[name] for name in ("J", "F", "S", "S_per_frame")})
    check_numbers({f"f_curve[{index}]": value for index, value in enumerate(record["f_curve"])}, may_be_null=False)
    if len({record[name] is None for name in ("J", "F", "S", "S_per_frame")}) > 1:
        raise ValueError("J, F, S and S_per_frame must be numbers, or all null")
    sampled = tuple(_rollout_of(rollout) for rollout in record["sampled"])
    greedy = None if record["greedy"] is None else _completion_of(record["greedy"])
    choices = _choices_of(record, greedy)
    tuples = {"f_curve": tuple(record["f_curve"]), "sampled": sampled, "choices": choices}
    return RowResult(**{**record, "greedy": greedy, **tuples})


def _choices_of(record: Mapping[str, Any], greedy: CompletionScore | None) -> tuple[str, ...] | None:
    choices = record.get("choices")
    if choices is not None and not (isinstance(choices, list) and all(isinstance(each, str) for each in choices)):
        raise ValueError(f"choices are {choices!r}: expected a list of texts, or null")
    if choices is not None and record.get("answer") not in choices:
        raise ValueError(f"answer is {record.get('answer')!r}: expected one of the choices {choices}")
    if choices is not None and len(choices) > MAX_CHOICES:
        raise ValueError(f"there are {len(choices)} choices: expected at most {MAX_CHOICES}, one a letter")
    chosen = None if greedy is None else greedy.chosen
    if chosen is not None and not (type(chosen) is int and 0 <= chosen < len(choices or ())):
        raise ValueError(f"chosen is {chosen!r}: expected the number of one of {len(choices or ())} choices")
    return None if choices is None else tuple(choices)


def _completion_of(greedy: Mapping[str, Any]) -> CompletionScore:
    fields = dict(greedy)
    if "scores" not in fields:
        fields["value"] = fields.pop("category")
        fields["scores"] = {name: fields.pop(key) for key, name in _REFERENCE_KEYS.items()}
        fields["is_right"] = fields["scores"]["category"] == 1.0
    _check_kinds(fields, str, "text")
    _check_kinds(fields, str | None, "value")
    _check_kinds(fields, bool, "is_right")
    check_numbers({**fields["scores"], "iou": fields["iou"]})
    return CompletionScore(**{**fields, **{name: tuple(fields[name]) for name in ("pred_masks", "preset_masks")}})


def _rollout_of(rollout: Mapping[str, Any]) -> RolloutScore:
    if "scores" in rollout:
        _check_kinds(rollout, bool, "is_right")
        check_numbers({**rollout["scores"], "iou": rollout["iou"]})
        return RolloutScore(**rollout)
    check_numbers(rollout)
    scores = {name: value for name, value in rollout.items() if name != "iou"}
    return RolloutScore(scores["category"] == 1.0, scores, rollout["iou"])


def _check_kinds(record: Mapping[str, Any], kind: Any, *names: str, default: Any = None) -> None:
    for name in names:
        if not isinstance(record.get(name, default), kind):
            expected = getattr(kind, "__name__", kind)
            raise ValueError(f"{name} is {str(record.get(name))[:80]!r}: expected {expected}")


def check_numbers(scores: Mapping[str, Any], *, may_be_null: bool = True) -> None:
    """Check that scores are finite: a NaN among them would make every mean one, and every verdict unclear.

    Raises:
        ValueError: naming the first score that is none.
    """
    for name, value in scores.items():
        if value is None and may_be_null:
            continue
        if not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise ValueError(f"{name} is {value!r}: expected a number{' or null' if may_be_null else ''}")


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
