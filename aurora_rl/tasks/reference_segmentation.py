"""Reference segmentation: a clip and a sentence; four steps of reasoning and the masks of what it refers to.

Its long parts lie beside it: `prompts` writes a chain of thought down, `completions` reads it back, `targets` holds
what each stage trains.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.data.chains import ChainFile
from aurora_rl.data.sample import NULL_CATEGORY, AVSample
from aurora_rl.tasks.base import Answer, Target, Task
from aurora_rl.tasks.completions import ParsedCompletion, completion_text, normalise_category, parse_completion
from aurora_rl.tasks.prompts import DEFAULT_INSTRUCTION, FINAL_SENTENCE, SEG_TOKEN, render_chain
from aurora_rl.tasks.targets import TARGETS, gold_chain


class ReferenceSegmentation(Task):
    """Find what a sentence refers to, in four steps of reasoning, and mask it; the paper's task."""

    head = "masks"
    answer_token = SEG_TOKEN
    closing = FINAL_SENTENCE
    instruction = DEFAULT_INSTRUCTION
    curves = {"category": "category/{kind}", "see": "chain/see", "hear": "chain/hear"}
    reflection_targets = frozenset({"reflection", "reflection_learn_wrong"})

    def target(self, sample: AVSample) -> Target:
        return gold_chain(sample)

    def targets(self) -> Mapping[str, Callable[[AVSample], Target]]:
        return TARGETS

    def chain_file(self, path: str | os.PathLike[str]) -> ChainFile:
        return ChainFile(Path(path), render_chain, answer_token=SEG_TOKEN)

    def parse(self, text: str) -> ParsedCompletion:
        return parse_completion(text)

    def is_right(self, answer: Answer, sample: AVSample) -> bool:
        """Tell whether an answer names the row's category; without one, whether it names a target at all."""
        if not sample.category:
            return answer.value not in (None, NULL_CATEGORY)
        return answers_category(answer, sample.category)

    def text_scores(self, answer: Answer, sample: AVSample) -> dict[str, float | None]:
        parsed = as_parsed(answer)
        return {
            "format": float(has_form(parsed)),
            "category": float(self.is_right(parsed, sample)) if sample.category else None,
            "see": see_score(parsed, sample),
            "hear": hear_score(parsed, sample),
        }


def answers_category(answer: Answer, category: str) -> bool:
    """Tell whether an answer's last claim is a category; case, quotes, hyphens and underscores do not count."""
    return answer.value == normalise_category(category)


def has_form(answer: ParsedCompletion, *, require_steps: bool = True) -> bool:
    """Tell whether a completion ends with "It is [SEG].", has no other `[SEG]`, and has the four steps once, in order.

    Args:
        answer: the parsed completion.
        require_steps: whether the steps count.
    """
    return answer.ends_with_seg and answer.num_seg == 1 and (answer.has_all_steps or not require_steps)


def see_score(answer: ParsedCompletion, sample: AVSample) -> float | None:
    """Return 1 if the chain names exactly the objects in view, each once, else 0; None where the truth is unknown."""
    if sample.seen is None:
        return None
    named = answer.seen
    if named is None or len(named) != len(set(named)):
        return 0.0
    return float(set(named) == set(map(normalise_category, sample.seen)))


def hear_score(answer: ParsedCompletion, sample: AVSample) -> float | None:
    """Return 1 if the chain names exactly the sounds, in order of onset, else 0; None where the truth is unknown."""
    if sample.heard is None:
        return None
    return float(answer.heard == tuple(map(normalise_category, sample.heard)))


def read_answers(
    completions: Sequence[str | Sequence[Mapping[str, Any]]], answers: Sequence[Answer] | None
) -> list[ParsedCompletion]:
    """Return the answers that a reward is given, or parse the completions where it is given none.

    Args:
        completions: text or chat messages.
        answers: the reward's column `answers`.

    Raises:
        TypeError: if the answers are those of another task, which this reward cannot read.
    """
    if answers is None:
        return [parse_completion(completion_text(completion)) for completion in completions]
    return [as_parsed(answer) for answer in answers]


def as_parsed(answer: Answer) -> ParsedCompletion:
    """Return an answer of this task unchanged; a TypeError tells that it is another task's."""
    if not isinstance(answer, ParsedCompletion):
        raise TypeError(
            f"this reads answers of reference segmentation, not {type(answer).__name__}: use the scores and rewards of "
            "the task itself"
        )
    return answer


def chain_file(path: str | os.PathLike[str]) -> ChainFile:
    """Return a file of chains of thought that are written down in the four steps of this task."""
    return ReferenceSegmentation().chain_file(path)
