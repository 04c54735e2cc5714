"""Rows of an evaluation, made by hand."""

import dataclasses

from aurora_rl.evaluation.records import CompletionScore, RowResult

ROW = RowResult(
    uid="a_drum_1",
    row=0,
    split="test_s",
    media_id="a",
    category="drum",
    reference="The drum.",
    reference_type="look",
    type_is_derived=True,
    preset="refavs",
    J=0.5,
    F=0.75,
    f_curve=(),
    S=0.25,
    S_per_frame=0.125,
    is_missing=False,
)
RIGHT = CompletionScore(
    text="",
    category="drum",
    format=1.0,
    category_correct=1.0,
    see=1.0,
    hear=1.0,
    iou=1.0,
    pred_masks=(),
    preset_masks=(),
)


def row(number: int, split: str = "test_s", **values: object) -> RowResult:
    """A row of saved masks, about a clip of its own."""
    base = dataclasses.replace(ROW, row=number, uid=f"uid{number}", split=split, media_id=f"clip{number}")
    return dataclasses.replace(base, **{"reference": f"Number {number}.", **values})


def null(number: int, s: float, split: str = "test_n", **values: object) -> RowResult:
    return row(number, split, category="null", reference_type="null", S=s, **values)


def answered(number: int, split: str = "test_s", **values: object) -> RowResult:
    """A model's row, right but for what `values` say of the row or of its greedy completion."""
    names = {field.name for field in dataclasses.fields(CompletionScore)} - {"category"}
    of_completion = {name: value for name, value in values.items() if name in names}
    of_row = {name: value for name, value in values.items() if name not in names}
    greedy = dataclasses.replace(RIGHT, **of_completion)
    return row(number, split, greedy=greedy, **{"J": 1.0, "F": 1.0, "S": 0.0, "S_per_frame": 0.0, **of_row})
