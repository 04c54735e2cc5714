"""Multiple-choice questions about clips as a list of samples, without masks.

One line of questions.jsonl is one question; the clip's files lie as in Ref-AVSBench:

    {"uid": "train-00000_0_2000_first", "split": "train", "clip": "train-00000_0_2000",
     "question": "Which sounds first?", "choices": ["drum", "dog", "bell", "bird"], "answer": "bell", "kind": "first",
     "chain": "Look: I see a drum and a bell.\\nListen: I hear a bell, then a drum.", "seen": [...], "heard": [...]}

    media/<clip>/frames/<f>.jpg, media/<clip>/audio.wav

`choices` have no letters: a task gives them theirs, in this order. `kind`, `chain` (reasoning before the answer),
`seen` and `heard` may be left out.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aurora_rl.data.files import BenchmarkFiles, DatasetError, OnMissing, Row, collect_samples, rows_of_split
from aurora_rl.data.sample import AVSample
from aurora_rl.files.existing import what_is_there
from aurora_rl.files.plain import NotPlainFileError, RecordError, read_records

QUESTIONS_FILE = "questions.jsonl"
#: Strings that a line must have, and those that it may have.
REQUIRED_TEXTS = ("uid", "split", "clip", "question", "answer")
OPTIONAL_TEXTS = ("kind", "chain")
#: A choice is named by one letter, A to Z.
MAX_CHOICES = 26


@dataclasses.dataclass(frozen=True)
class QuestionRow(Row):
    """One line of the file; `category` is the answer and `reference` the question."""

    clip: str
    choices: tuple[str, ...]
    kind: str | None
    chain: str | None
    seen: tuple[str, ...] | None
    heard: tuple[str, ...] | None


def load_questions(
    root: str | os.PathLike[str],
    split: str,
    *,
    fps: float = 1.0,
    num_frames: int | None = 10,
    on_missing: OnMissing = "error",
) -> list[AVSample]:
    """List the questions of one split, and check that the clips' files are there.

    Args:
        root: folder that holds questions.jsonl and media/.
        split: name of the split as in questions.jsonl.
        fps: frames a second of the clips.
        num_frames: number of frames that each clip must have; None for any number.
        on_missing: "error", or "drop" to skip questions whose files are missing and log how many.

    Returns:
        The samples in the file's order: the answer is both `answer` and `category`, and `mask_paths` is empty.

    Raises:
        DatasetError: if questions.jsonl is malformed or lacks the split, or if files are missing or lie outside the
            root.
    """
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}: expected a positive number, or None for any")
    path = Path(root) / QUESTIONS_FILE
    build = functools.partial(_build_sample, BenchmarkFiles(Path(root)), fps=fps, num_frames=num_frames)
    rows = rows_of_split(read_questions(path), split, path=path)
    return collect_samples(rows, build, split=split, on_missing=on_missing)


def read_questions(path: Path) -> list[QuestionRow]:
    """Read all lines of questions.jsonl, those of other splits included, so that `row` counts the file's own.

    Raises:
        DatasetError: naming the line, if one is malformed.
    """
    if not path.is_file():
        layout = f"{QUESTIONS_FILE} and media/"
        raise DatasetError(f"there is no {path}: root must be the folder that holds {layout}; {what_is_there(path)}")
    try:
        return [_parse_row(record, row=row, place=place) for row, (place, record) in enumerate(read_records(path))]
    except (RecordError, NotPlainFileError) as error:
        raise DatasetError(str(error)) from error


def _parse_row(record: Mapping[str, Any], *, row: int, place: str) -> QuestionRow:
    try:
        choices = _texts(record, "choices") or ()
        _check_record(record, choices)
        return QuestionRow(
            uid=record["uid"],
            row=row,
            split=record["split"],
            category=record["answer"],
            reference=record["question"],
            origin=place,
            clip=record["clip"],
            choices=choices,
            kind=record.get("kind"),
            chain=record.get("chain"),
            seen=_texts(record, "seen"),
            heard=_texts(record, "heard"),
        )
    except ValueError as error:
        raise DatasetError(f"{place}: {error}; fix or drop the line") from error


def _check_record(record: Mapping[str, Any], choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless a record has a question's texts and different choices, the answer among them."""
    for name in (*REQUIRED_TEXTS, *OPTIONAL_TEXTS):
        value = record.get(name)
        if value is None and name in OPTIONAL_TEXTS:
            continue
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{name} is {repr(value)[:80]}: expected text that is not empty")
        value.encode()  # a UnicodeEncodeError, which is a ValueError, for half a surrogate pair
    distinct = {choice.strip().lower() for choice in choices}
    if not 2 <= len(choices) <= MAX_CHOICES or len(distinct) < len(choices) or "" in distinct:
        raise ValueError(f"choices is {list(choices)}: expected 2 to {MAX_CHOICES} different texts")
    if record["answer"] not in choices:
        raise ValueError(f"the answer {record['answer']!r} is none of the choices {list(choices)}")


def _texts(record: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    value = record.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):  # a string is iterable, too
        raise ValueError(f"{name} is {repr(value)[:80]}: expected a list of texts")
    "".join(value).encode()
    return tuple(value)


def _build_sample(files: BenchmarkFiles, row: QuestionRow, *, fps: float, num_frames: int | None) -> AVSample:
    folder = files.path(row, "media", row.clip, "frames")
    sample = row.to_sample(
        media_id=row.clip,
        fps=fps,
        frame_paths=files.numbered(row, folder, kind="frames", num_expected=num_frames),
        audio_path=files.audio(row, "media", row.clip, "audio.wav"),
        mask_paths=(),
        reference_type=row.kind,
    )
    return dataclasses.replace(
        sample, chain=row.chain, seen=row.seen, heard=row.heard, choices=row.choices, answer=row.category
    )
