"""Published multiple-choice benchmarks about sound, each in its authors' files: AVQA (two forms), MMAU, MMAR, MMSU.

    avqa_r1   <split>/omni_rl_format_<split>.json, a list: a still picture and a sound (EchoInk-R1)
    avqa      avqa_<split>.jsonl: a sound alone (R1-AQA's form of AVQA)
    mmau      mmau-<split>.json, a list: test-mini with answers, test without
    mmar      MMAR-meta.jsonl: one split, "test"
    mmsu      mmsu.jsonl: one split, "test"; the table of the hub with `audio_path` beside its columns

A row of MMAU:

    {"id": "3fe64f3d", "audio_id": "./test-mini-audios/3fe64f3d.wav", "question": "Who speaks?",
     "choices": ["Man", "Woman"], "answer": "Man", "task": "sound", "category": "Reasoning", "difficulty": "medium"}

Rows are kept as they are: some repeat an option. Paths are relative to `data_root` (`avqa_r1`: to the split's folder)
and may not leave it. Further columns are kept in `AVSample.extra`, for tables by task or difficulty.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aurora_rl.data.chains import ChainFile, add_chains
from aurora_rl.data.clip_files import ClipPaths
from aurora_rl.data.files import DatasetError, OnMissing, Row, collect_samples
from aurora_rl.data.questions import MAX_CHOICES
from aurora_rl.data.sample import AVSample
from aurora_rl.files.existing import what_is_there
from aurora_rl.files.plain import NotPlainFileError, RecordError, parse_json, read_records, read_text_file

#: "A. drum", as AVQA-R1-6K writes its options.
_LETTERED = re.compile(r"[A-Z]\.\s*")
_SOLUTION = re.compile(r"\s*<answer>\s*([A-Z])\s*</answer>\s*")


@dataclasses.dataclass(frozen=True)
class TableQuestion:
    """What a record of a table says, in common words.

    Attributes:
        uid: the record's id.
        question: text of the question.
        choices: options in the order in which they get their letters.
        answer: text of the right option; None where it is kept back.
        sound: path of the sound.
        picture: path of the still picture; None for a sound alone.
        kind: kind of the question, by which accuracies are grouped.
    """

    uid: str
    question: str
    choices: tuple[str, ...]
    answer: str | None
    sound: str
    picture: str | None = None
    kind: str | None = None


@dataclasses.dataclass(frozen=True)
class QuestionTable:
    """A benchmark's file and how its records are read.

    Attributes:
        file: path of the file under the root, of a split's name.
        read: function of a record; it raises a KeyError or a ValueError.
        splits: names of the splits where the file does not name them.
        media: folder of the media under the root, of a split's name.
    """

    file: str
    read: Callable[[Mapping[str, Any]], TableQuestion]
    splits: tuple[str, ...] = ()
    media: str = ""

    def path(self, root: Path, split: str) -> Path:
        """Return the file of a split."""
        return root / self.file.format(split=split)


@dataclasses.dataclass(frozen=True)
class _TableRow(Row):
    asked: TableQuestion
    extra: str


def load_question_table(
    benchmark: str,
    root: str | os.PathLike[str],
    split: str,
    *,
    chains: ChainFile | None = None,
    on_missing: OnMissing = "error",
) -> list[AVSample]:
    """List the questions of one split of a published benchmark, and check that their media are there.

    Args:
        benchmark: a key of `QUESTION_TABLES`.
        root: folder that holds the benchmark's file and media.
        split: name of the split.
        chains: file of chains of thought of this split, keyed by uid and row, whose `category` is the answer's text.
        on_missing: "error", or "drop" to skip questions whose files are missing and log how many.

    Returns:
        The samples in the file's order, of one picture or none; `answer` is None where the benchmark keeps it back.

    Raises:
        DatasetError: if the file is missing or malformed, or if media are missing or lie outside the root.
    """
    table = QUESTION_TABLES[benchmark]
    root = Path(root)
    if split not in (splits := list_question_splits(benchmark, root)):
        raise DatasetError(f"{root} has no split {split!r} of {benchmark}: expected one of {sorted(splits)}")
    rows = list(_read_rows(table, table.path(root, split), split))
    paths = ClipPaths(root / table.media.format(split=split))
    samples = collect_samples(rows, lambda row: _build_sample(paths, row), split=split, on_missing=on_missing)
    return add_chains(samples, chains, rows)


def list_question_splits(benchmark: str, root: Path) -> set[str]:
    """Return the splits whose file is there.

    Raises:
        DatasetError: if there is none.
    """
    table = QUESTION_TABLES[benchmark]
    before, _, after = table.file.partition("{split}")
    names = [path.name for path in root.iterdir()] if root.is_dir() else []
    candidates = table.splits or [name.removeprefix(before).removesuffix(after) for name in names]
    found = {split for split in candidates if table.path(root, split).is_file()}
    if not found:
        example = table.path(root, (*table.splits, "train")[0])
        raise DatasetError(f"there is no {example}: root must be the folder of {benchmark}; {what_is_there(example)}")
    return found


def _read_rows(table: QuestionTable, path: Path, split: str) -> Iterator[_TableRow]:
    seen: dict[str, str] = {}
    for number, (place, record) in enumerate(_records(path)):
        try:
            asked = table.read(record)
            _check(asked)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            raise DatasetError(f"{place}: {reason}; fix or drop the record") from error
        if asked.uid in seen:
            raise DatasetError(f"{place} has the id {asked.uid!r} of {seen[asked.uid]}: give it one of its own")
        seen[asked.uid] = place
        yield _TableRow(
            uid=asked.uid,
            row=number,
            split=split,
            category=asked.answer or "",
            reference=asked.question,
            origin=place,
            asked=asked,
            extra=json.dumps(record, ensure_ascii=False),
        )


def _records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        if path.suffix == ".jsonl":
            yield from read_records(path)
            return
        records = parse_json(read_text_file(path))
    except (RecordError, NotPlainFileError, ValueError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DatasetError(f"{path} is no list of JSON objects: is it the benchmark's own file?")
    yield from ((f"{path}, record {number}", record) for number, record in enumerate(records))


def _check(asked: TableQuestion) -> None:
    for name in ("uid", "question", "sound", *(["picture"] if asked.picture is not None else [])):
        value = getattr(asked, name)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"its {name} is {repr(value)[:80]}: expected text that is not empty")
        value.encode()  # a UnicodeEncodeError, which is a ValueError, for half a surrogate pair
    if not all(isinstance(choice, str) and choice.strip() for choice in asked.choices):
        raise ValueError(f"its options are {list(asked.choices)!r}: expected texts that are not empty")
    if not 2 <= len(asked.choices) <= MAX_CHOICES:
        raise ValueError(f"it has {len(asked.choices)} options: expected 2 to {MAX_CHOICES}")
    "".join(asked.choices).encode()
    if asked.answer is not None and asked.answer not in asked.choices:
        raise ValueError(f"the answer {asked.answer!r} is none of the options {list(asked.choices)}")


def _build_sample(paths: ClipPaths, row: _TableRow) -> AVSample:
    asked = row.asked
    picture = None if asked.picture is None else paths.find(row, "picture", asked.picture)
    sample = row.to_sample(
        media_id=asked.sound.removeprefix("./"),
        fps=1.0,
        frame_paths=() if picture is None else (str(picture),),
        audio_path=str(paths.find(row, "sound", asked.sound)),
        mask_paths=(),
        reference_type=asked.kind,
    )
    return dataclasses.replace(sample, choices=asked.choices, answer=asked.answer, extra=row.extra)


def _texts(record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = record[name]
    if not isinstance(value, list):
        raise ValueError(f"its {name} are {repr(value)[:80]}: expected a list")
    return tuple(value)


def _id(record: Mapping[str, Any], name: str) -> str:
    if isinstance(value := record[name], bool) or not isinstance(value, str | int):
        raise ValueError(f"its {name} is {repr(value)[:80]}: expected a text or a number")
    return str(value)


def _read_avqa_r1(record: Mapping[str, Any]) -> TableQuestion:
    if record["problem_type"] != "multiple choice":
        raise ValueError(f"its problem_type is {record['problem_type']!r}: only 'multiple choice' can be read")
    choices = tuple(_LETTERED.sub("", option, count=1) for option in _texts(record, "options"))
    solution = _SOLUTION.fullmatch(record["solution"])
    if solution is None or (index := ord(solution[1]) - ord("A")) >= len(choices):
        raise ValueError(f"its solution is {record['solution']!r}: expected the letter of an option in <answer>")
    path = record["path"]
    return TableQuestion(
        _id(record, "problem_id"),
        record["problem"],
        choices,
        choices[index],
        path["audio"],
        path["image"],
    )


def _read_avqa(record: Mapping[str, Any]) -> TableQuestion:
    choices, index = _texts(record, "multi_choice"), record["answer"]
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(choices):
        raise ValueError(f"its answer is {index!r}: expected the number of an option, 0 to {len(choices) - 1}")
    return TableQuestion(
        _id(record, "id"),
        record["question_text"].replace("video", "audio"),
        choices,
        choices[index],
        record["audio_path"],
        kind=record.get("question_type"),
    )


def _read_mmau(record: Mapping[str, Any]) -> TableQuestion:
    answer = record.get("answer") or None
    return TableQuestion(
        _id(record, "id"),
        record["question"],
        _texts(record, "choices"),
        answer,
        record["audio_id"],
        kind=record["task"],
    )


def _read_mmar(record: Mapping[str, Any]) -> TableQuestion:
    return TableQuestion(
        _id(record, "id"),
        record["question"],
        _texts(record, "choices"),
        record["answer"],
        record["audio_path"],
        kind=record["modality"],
    )


def _read_mmsu(record: Mapping[str, Any]) -> TableQuestion:
    given = [record.get(f"choice_{letter}") for letter in "abcd"]
    choices = tuple(choice for choice in given if choice)
    if choices != tuple(given[: len(choices)]):
        raise ValueError(f"its options are {given}: one that is left out comes before another")
    return TableQuestion(
        _id(record, "id"),
        record["question"],
        choices,
        record["answer_gt"],
        record["audio_path"],
        kind=record["category"],
    )


#: The benchmarks by the name that `benchmark` has in a recipe.
QUESTION_TABLES: Mapping[str, QuestionTable] = {
    "avqa_r1": QuestionTable("{split}/omni_rl_format_{split}.json", _read_avqa_r1, media="{split}"),
    "avqa": QuestionTable("avqa_{split}.jsonl", _read_avqa),
    "mmau": QuestionTable("mmau-{split}.json", _read_mmau, splits=("test-mini", "test")),
    "mmar": QuestionTable("MMAR-meta.jsonl", _read_mmar, splits=("test",)),
    "mmsu": QuestionTable("mmsu.jsonl", _read_mmsu, splits=("test",)),
}
