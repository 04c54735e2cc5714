"""Rows of an evaluation, made by hand."""

import dataclasses

from aurora_rl.evaluation.records import CompletionScore, RolloutScore, RowResult

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
    text="", value="drum", is_right=True, scores={"format": 1.0, "category": 1.0, "see": 1.0, "hear": 1.0}, iou=1.0
)
#: A question that is answered in words.
QUESTION = RowResult(
    uid="a_first_1",
    row=0,
    split="test_s",
    media_id="a",
    category="",
    reference="What sounds first?",
    reference_type="order",
    type_is_derived=False,
    preset="refavs",
    answer="the drum",
)


def row(number: int, split: str = "test_s", **values: object) -> RowResult:
    """A row of saved masks, about a clip of its own."""
    base = dataclasses.replace(ROW, row=number, uid=f"uid{number}", split=split, media_id=f"clip{number}")
    return dataclasses.replace(base, **{"reference": f"Number {number}.", **values})


def null(number: int, s: float, split: str = "test_n", **values: object) -> RowResult:
    return row(number, split, category="null", reference_type="null", S=s, **values)


def answered(number: int, split: str = "test_s", **values: object) -> RowResult:
    """A model's row, right but for what `values` say of the row or of its greedy completion."""
    scores = {name: values.pop(name, right) for name, right in RIGHT.scores.items() if name != "category"}
    scores["category"] = values.pop("category_correct", 1.0)
    rest = {name: values.pop(name) for name in ("text", "iou") if name in values}
    greedy = dataclasses.replace(RIGHT, scores=scores, is_right=scores["category"] == 1.0, **rest)
    return row(number, split, greedy=greedy, **{"J": 1.0, "F": 1.0, "S": 0.0, "S_per_frame": 0.0, **values})


def rollout(format: float, category: float, iou: float) -> RolloutScore:  # noqa: A002  # the score's name
    """A sampled completion of reference segmentation."""
    return RolloutScore(category == 1.0, {"format": format, "category": category}, iou)


def replied(number: int, value: str | None = "b", *, is_right: bool = True, **values: object) -> RowResult:
    """A model's answer to a question about a clip of its own; `scores` are those of the task."""
    scores = values.pop("scores", {"format": float(value is not None)})
    greedy = CompletionScore(text=f"Answer: {value}", value=value, is_right=is_right, scores=scores)
    base = dataclasses.replace(QUESTION, row=number, uid=f"uid{number}", media_id=f"clip{number}", greedy=greedy)
    return dataclasses.replace(base, **values)


def chose(number: int, right: str, chosen: str | None, **values: object) -> RowResult:
    """A model's choice among the options a to d, each a letter's; None is an answer that is none of them."""
    made = replied(number, "unclear" if chosen is None else chosen, is_right=right == chosen)
    greedy = dataclasses.replace(made.completion, chosen=None if chosen is None else "abcd".index(chosen))
    return dataclasses.replace(made, answer=right, choices=tuple("abcd"), greedy=greedy, **values)
