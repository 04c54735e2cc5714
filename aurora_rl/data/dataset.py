"""Samples as a `datasets.Dataset`, which TRL's trainers read, shuffle and log.

A row holds the sample's fields and `prompt`. Media stay on disk: the collator and the trainers read them with
`media.load_clip(AVSample.from_row(row))`.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from datasets import Dataset, Features, List, Value

from aurora_rl.data.sample import AVSample

# The types are written out, so that they do not depend on the rows: a column that is None in every row, such as
# `chain`, would be inferred as null.
#: Columns that identify a row and its question.
ROW_FEATURES = {
    "uid": Value("string"),
    "row": Value("int64"),
    "split": Value("string"),
    "media_id": Value("string"),
    "category": Value("string"),
    "reference": Value("string"),
    "fps": Value("float64"),
}
#: Columns that only some benchmarks have.
ANNOTATION_FEATURES = {
    "reference_type": Value("string"),
    "chain": Value("string"),
    "wrong": Value("string"),
    "seen": List(Value("string")),
    "heard": List(Value("string")),
    "choices": List(Value("string")),
    "answer": Value("string"),
    "extra": Value("string"),
}
FEATURES = Features(
    {
        **ROW_FEATURES,
        "frame_paths": List(Value("string")),
        "video_path": Value("string"),
        "frame_times": List(Value("float64")),
        "sampled_fps": Value("float64"),
        "frame_cache": Value("string"),
        "audio_path": Value("string"),
        "mask_paths": List(Value("string")),
        **ANNOTATION_FEATURES,
        "reference_media": List(Value("string")),
        "origin": Value("string"),
        "use_audio_in_video": Value("bool"),
        "dataset": Value("string"),
        "prompt": List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}),
    }
)


def with_equal_columns(samples: Sequence[AVSample]) -> list[AVSample]:
    """Give all samples the further columns of any of them, None where one lacks a column: rewards get them by batch."""
    names = {name: None for sample in samples if sample.extra is not None for name in sample.extra_columns}
    if not names:
        return list(samples)
    return [dataclasses.replace(sample, extra=json.dumps(names | sample.extra_columns)) for sample in samples]


def to_dataset(samples: Iterable[AVSample], prompt: Callable[[AVSample], list[dict[str, Any]]]) -> Dataset:
    """Build the dataset of a list of samples; `AVSample.from_row` gives each sample back.

    Args:
        samples: rows of a benchmark.
        prompt: function that makes the chat message of a sample, without media.

    Returns:
        One row a sample, in order: the fields of `AVSample` and `prompt`, the text-only chat message that TRL logs
        and hands to rewards.
    """
    samples = with_equal_columns(list(samples))
    rows = [{**sample.to_row(), "prompt": prompt(sample)} for sample in samples]
    return Dataset.from_dict({name: [row[name] for row in rows] for name in FEATURES}, features=FEATURES)
