"""Reasoning-consistency reward: the answer follows from the chain, and the chain from the clip.

Rewards on the final answer alone let the chain decay while the answer gets better. This reward compares what the chain
says with the answer, with where the predicted mask lies and with the loudness of the clip. It never sees the truth, and
a missing claim earns nothing: a chain without a look or a listen step fails the checks that would read it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from aurora_rl.data.media import SILENCE_DBFS
from aurora_rl.data.sample import NULL_CATEGORY
from aurora_rl.metrics import mask_place
from aurora_rl.rewards import reads
from aurora_rl.tasks.base import Answer
from aurora_rl.tasks.completions import ParsedCompletion, normalise_category, parse_completion
from aurora_rl.tasks.prompts import REASONING_STEPS
from aurora_rl.tasks.reference_segmentation import read_answers

# "To the left of the drum" places the object beside another one, whose place is not known here.
_NOT_BESIDE = r"(?!(?:[- ]hand)?(?: side)? of (?!(?:the |this )?(?:image|picture|frame|screen|scene|view)\b))"
# "right" is also "correct" and "left" also "gone", unless a place word leads; hands and feet are not places.
_LEADING = r"\b(?:the|on|at|in|to|far|very|top|bottom|upper|lower)[ -]"
_NOT_LIMB = r"(?![ -](?:hand(?![ -]side)|arm|foot|leg|ear|eye)s?\b)"
_SIDE = rf"{_LEADING}{{0}}\b{_NOT_LIMB}{_NOT_BESIDE}"
# "A white top" is a garment, "the lowest sound" no place.
_END = rf"\b(?:at|on|in|to|near) the (?:very )?{{0}}\b{_NOT_BESIDE}|\b{{0}}(?:most\b|[ -](?:left|right|half|corner)\b)"
_SPATIAL_WORDS = {
    "left": re.compile(rf"\bleftmost\b|{_SIDE.format('left')}", re.IGNORECASE),
    "right": re.compile(rf"\brightmost\b|{_SIDE.format('right')}", re.IGNORECASE),
    "top": re.compile(_END.format("top"), re.IGNORECASE),
    "bottom": re.compile(_END.format("bottom"), re.IGNORECASE),
    "centre": re.compile(rf"\b(?:centre|center|middle)\b(?![ -]aged){_NOT_BESIDE}", re.IGNORECASE),
    "largest": re.compile(r"(?<!of the )(?<!on the )\b(?:largest|biggest)\b", re.IGNORECASE),
}
_LONGEST_CATEGORY = 100  # characters; anything longer is no name of an object
_CLAUSE_END = re.compile(r"[.,;!?\n]|\b(?:and|then|while|but)\b")
_SILENCE = re.compile(
    r"\b(?:nothing|silent|silence|muted|inaudible|no (?:audible )?sounds?|(?:not|cannot|can't) hear)\b"
)
_SOUND = re.compile(r"\b(?:hear|heard|sounds?|sounding|audible|plays?|playing|sings?|singing|speaks?|speaking)\b")


@dataclasses.dataclass(frozen=True)
class _Place:
    """The place of a predicted mask.

    Attributes:
        x: mean column of its pixels, 0 at the left edge and 1 at the right.
        y: mean row, 0 at the top and 1 at the bottom.
        share: its share of all pixels of the clip.
    """

    x: float
    y: float
    share: float


# "The left one of two" may stand in the middle of the frame, so only the opposite third contradicts a side. Other
# objects are not known here, but a mask of less than 2 % of the pixels is a speck and cannot be the largest object.
_AGREES: dict[str, Callable[[_Place], bool]] = {
    "left": lambda place: place.x < 2 / 3,
    "right": lambda place: place.x > 1 / 3,
    "top": lambda place: place.y < 2 / 3,
    "bottom": lambda place: place.y > 1 / 3,
    "centre": lambda place: 1 / 4 < place.x < 3 / 4,
    "largest": lambda place: place.share >= 0.02,
}


@reads(ParsedCompletion)
def reasoning_consistency_reward(
    prompts: list[Any],
    completions: list[Any],
    *,
    reference: list[str],
    pred_masks: list[Tensor | None],
    loudness_dbfs: list[float],
    answers: Sequence[Answer] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Return the mean of the checks that apply to a completion.

    1. Named: the category answered is named in an earlier step (does not apply to a null answer).
    2. Place: the share of distinct spatial words that agree with the place of the predicted mask. The words are those
       of the reference, of the read step and of clauses that name the answer (does not apply without such words or to
       a null answer, fails where nothing is predicted).
    3. Sound: hearing something, or nothing, agrees with the loudness of the clip (fails without a listen step).
    4. One target: the chain names one final target. A claim before "Wait, let me reconsider." is withdrawn.

    Example: the reference asks for "the object on the left", the chain sees, hears and answers the drum in a loud clip,
    but the predicted mask lies at the right edge: three checks of four hold, reward 0.75.

    >>> import torch
    >>> pred_mask = torch.zeros(1, 4, 8, dtype=torch.bool)
    >>> pred_mask[:, :, 7] = True
    >>> text = "Look: I see a drum.\\nListen: I hear a drum.\\nRead: asked for.\\nAnswer: the target is the drum."
    >>> columns = {"reference": ["the object on the left"], "pred_masks": [pred_mask], "loudness_dbfs": [-20.0]}
    >>> reasoning_consistency_reward([None], [text], **columns)
    [0.75]

    Args:
        prompts: not read.
        completions: text or chat messages.
        reference: the referring sentence of each row.
        pred_masks: predicted masks of each completion, (F, H, W) bool; None if it holds no `[SEG]`.
        loudness_dbfs: loudest 100 ms window of each clip, in dBFS; minus infinity for digital silence.
        answers: the completions as reference segmentation reads them; None to read them here.
        **columns: not read.

    Returns:
        Per completion a number in [0, 1]; 0.0 without any step of the chain. Never None: the last two checks always
        apply.
    """
    parsed = read_answers(completions, answers)
    return [
        _score(answer, sentence, masks, loudness)
        for answer, sentence, masks, loudness in zip(parsed, reference, pred_masks, loudness_dbfs, strict=True)
    ]


def _score(parsed: ParsedCompletion, reference: str, pred_masks: Tensor | None, loudness: float) -> float:
    if not any(parsed.steps.get(step) for step in REASONING_STEPS):
        return 0.0
    checks = [
        _check_named(parsed),
        _check_place(parsed, reference, pred_masks),
        _check_sound(parsed, loudness),
        _check_one_target(parsed),
    ]
    applying = [check for check in checks if check is not None]
    return sum(applying) / len(applying)


def _check_named(parsed: ParsedCompletion) -> float | None:
    if parsed.category is None or not parsed.steps.get("look"):
        return 0.0
    if parsed.category == NULL_CATEGORY:
        return None
    return float(any(_names(parsed.steps.get(step, ""), parsed.category) for step in REASONING_STEPS))


def _check_place(parsed: ParsedCompletion, reference: str, pred_masks: Tensor | None) -> float | None:
    words = _spatial_words(parsed, reference)
    if not words or parsed.category == NULL_CATEGORY:
        return None
    place = None if pred_masks is None else mask_place(pred_masks)
    if place is None:
        return 0.0
    return sum(_AGREES[word](_Place(*place)) for word in words) / len(words)


def _check_sound(parsed: ParsedCompletion, loudness: float) -> float:
    return float(_claims_sound(parsed) == (loudness >= SILENCE_DBFS))  # None (nothing claimed) equals neither


def _check_one_target(parsed: ParsedCompletion) -> float:
    return float(len(set(parse_completion(parsed.standing).targets)) == 1)


def _names(text: str, category: str) -> bool:
    # A collapsed policy may answer thousands of characters, which would be compared at each character of the text.
    return (
        len(category) <= _LONGEST_CATEGORY
        and re.search(rf"\b{re.escape(category)}s?\b", normalise_category(text)) is not None
    )


def _spatial_words(parsed: ParsedCompletion, reference: str) -> set[str]:
    """Return the keys of `_SPATIAL_WORDS` said of the target, not of another object in the chain."""
    earlier = " . ".join(parsed.steps.get(step, "") for step in ("look", "listen"))
    about_answer = [
        clause for clause in _CLAUSE_END.split(earlier) if parsed.category and _names(clause, parsed.category)
    ]
    said = "\n".join([reference, parsed.steps.get("read", ""), *about_answer])
    return {word for word, pattern in _SPATIAL_WORDS.items() if pattern.search(said)}


def _claims_sound(parsed: ParsedCompletion) -> bool | None:
    """Tell whether the listen step says that something sounds; None if it does not say."""
    if parsed.heard is not None:
        return bool(parsed.heard)
    step = parsed.steps.get("listen", "").lower()
    if _SILENCE.search(step):
        return False
    return True if _SOUND.search(step) else None
