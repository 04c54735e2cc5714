"""Multiple-choice questions about a synthetic clip, their gold reasoning, and the best answer that sight alone gives.

A question is asked only of a clip in which exactly one category is its answer. Its four options are the categories that
could be right for someone who only sees the clip, and distractors; so a model has to listen.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from aurora_rl.synthetic.config import TRAINED_CATEGORIES
from aurora_rl.synthetic.references import heard_step, seen_step

#: Options of a question.
NUM_CHOICES = 4
#: Objects in view among the options of "Which sounds but is not seen?".
NUM_SEEN_CHOICES = 1

#: The question of each kind.
QUESTIONS = {
    "sounding": "Which one sounds?",
    "first": "Which sounds first?",
    "last": "Which sounds last?",
    "silent": "Which is seen but silent?",
    "unseen": "Which sounds but is not seen?",
}


@dataclasses.dataclass(frozen=True)
class Question:
    """One question about one clip.

    Attributes:
        kind: a key of `QUESTIONS`.
        choices: the options, in the order in which they get their letters.
        answer: the right one of `choices`.
        reasoning: gold reasoning before the answer, such as "Look: I see a drum.\\nListen: I hear a bell.".
    """

    kind: str
    choices: tuple[str, ...]
    answer: str
    reasoning: str

    @property
    def text(self) -> str:
        """The question in words, without the options."""
        return QUESTIONS[self.kind]


def questions_of(seen: Sequence[str], heard: Sequence[str], rng: np.random.Generator) -> list[Question]:
    """List every question that a clip of trained categories answers with exactly one category.

    Args:
        seen: categories in view, from left to right.
        heard: categories that sound, in order of onset.
        rng: random generator of the distractors and of the options' order.
    """
    reasoning = f"Look: {seen_step(seen)}\nListen: {heard_step(heard)}"
    return [
        Question(kind, _draw_choices(kind, answer, seen, rng), answer, reasoning)
        for kind, answer in _answers(seen, heard).items()
    ]


def _answers(seen: Sequence[str], heard: Sequence[str]) -> dict[str, str]:
    """Return the answer of each kind of question that has exactly one."""
    silent = [category for category in seen if category not in heard]
    unseen = [category for category in heard if category not in seen]
    answers: dict[str, str] = {}
    if not unseen and len(heard) == 1:
        answers["sounding"] = heard[0]
    if not unseen and len(heard) > 1:
        answers |= {"first": heard[0], "last": heard[-1]}
    if heard and len(silent) == 1:
        answers["silent"] = silent[0]
    if len(unseen) == 1:
        answers["unseen"] = unseen[0]
    return answers


def _draw_choices(kind: str, answer: str, seen: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
    """Draw the options so that none of those that sight allows is likelier than another."""
    shown = rng.permutation(list(seen))[:NUM_SEEN_CHOICES] if kind == "unseen" else seen
    chosen = {*map(str, shown), answer}
    others = [category for category in TRAINED_CATEGORIES if category not in {*seen, answer}]
    distractors = rng.permutation(others)[: NUM_CHOICES - len(chosen)]
    return tuple(str(choice) for choice in rng.permutation(sorted([*chosen, *map(str, distractors)])))


def accuracy_of_sight(kind: str, choices: Sequence[str], seen: Sequence[str]) -> float:
    """Return the probability that the best answerer who only sees a clip is right.

    Sounds are drawn without a look at the picture: each option that the picture allows is equally likely. So the best
    that sight can do is to guess among them.

    Args:
        kind: the question's kind.
        choices: its options.
        seen: categories in view.
    """
    possible = [choice for choice in choices if (choice in seen) != (kind == "unseen")]
    return 1 / len(possible)
