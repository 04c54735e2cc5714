"""Category rewards: the completion names what the reference points at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from aurora_rl.rewards import reads
from aurora_rl.tasks.base import Answer, completion_text
from aurora_rl.tasks.completions import ParsedCompletion
from aurora_rl.tasks.reference_segmentation import answers_category, read_answers


@reads(ParsedCompletion)
def category_reward(
    prompts: list[Any],
    completions: list[Any],
    *,
    category: list[str],
    answers: Sequence[Answer] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Return 1.0 if the last category claimed is the true one, else 0.0.

    Case, quotes, hyphens and underscores do not count. "There is no such target" is the category `"null"`.

    Example: "the target is the hair-dryer." against the truth "hair_dryer" earns 1.0.

    >>> category_reward([None], ["the target is the hair-dryer. It is [SEG]."], category=["hair_dryer"])
    [1.0]

    Args:
        prompts: not read.
        completions: text or chat messages.
        category: the true category of each row, `"null"` where the reference points at nothing, "" where it is not
            known.
        answers: the completions as reference segmentation reads them; None to read them here.
        **columns: not read.

    Returns:
        Per completion 1.0 or 0.0, also where it claims nothing; None where the true category is not known.
    """
    parsed = read_answers(completions, answers)
    pairs = zip(parsed, category, strict=True)
    return [float(answers_category(answer, truth)) if truth else None for answer, truth in pairs]


@reads(ParsedCompletion)
def authors_category_reward(
    prompts: list[Any], completions: list[Any], *, category: list[str], **columns: Any
) -> list[float | None]:
    """Score as the class reward of the authors' release does: 1 for naming a target, 1 more for the true one.

    It is here for comparison. It reads one word from the last sentence but one, so `hair-dryer` is never right and a
    null answer earns 0.

    Example: "the target is the bell. It is [SEG]." against the truth "drum" earns 1.0.

    >>> authors_category_reward([None], ["the target is the bell. It is [SEG]."], category=["drum"])
    [1.0]

    The arguments are those of `category_reward`.

    Returns:
        Per completion 0.0, 1.0 or 2.0, which is not in [0, 1]: give it half the weight of `category_reward`. None
        where the true category is not known.
    """
    texts = [completion_text(completion) for completion in completions]
    return [_authors_score(text, truth) if truth else None for text, truth in zip(texts, category, strict=True)]


def _authors_score(text: str, truth: str) -> float:
    sentences = [sentence for sentence in re.split(r"[,.!?]+", text) if sentence.strip()]
    claim = re.search(r"the target is (?:the )?(\w+)", sentences[-2], re.IGNORECASE) if len(sentences) > 1 else None
    if claim is None:
        return 0.0
    return 2.0 if claim[1].lower() == truth else 1.0
