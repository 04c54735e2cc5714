"""Multiple choice: a clip and a question with lettered options; short reasoning, then one letter. No masks.

    Which sounds first?                       Look: I see a drum and a bell.
    A. dog                                    Listen: I hear a bell, then a drum.
    B. bell                                   Answer: B
    C. drum

A derived class may put answers between other marks (`write` and `read`); a class derived from `ChoiceAnswer`, which its
`parse` returns, may match them to the options by another rule (`choose`). Everything else follows.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from aurora_rl.data.sample import AVSample
from aurora_rl.tasks.base import Answer, Target, Task
from aurora_rl.tasks.completions import ParsedCompletion, normalise_category, parse_completion
from aurora_rl.tasks.matchers import LETTERS, is_same_option, match_choice
from aurora_rl.tasks.reference_segmentation import hear_score, see_score

ANSWER_LABEL = "Answer:"
#: The labelled parts of a completion, once each and in this order.
PARTS = ("look", "listen", "answer")

_ANSWER = re.compile(rf"^[ \t]*{ANSWER_LABEL}", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class ChoiceAnswer(Answer):
    """A completion as multiple choice reads it.

    Attributes:
        marked: the text that is marked as the answer; None if none is marked, or several are.
        has_form: whether all parts are there once each, in order, with nothing around them.
        reasoning: what the completion says to see and to hear.
    """

    marked: str | None
    has_form: bool
    reasoning: ParsedCompletion

    @property
    def value(self) -> str | None:
        """The marked text, normalised: a letter or an option's text, if the completion follows the format."""
        return normalise_category(self.marked) or None if self.marked is not None else None

    def choose(self, choices: Sequence[str]) -> int | None:
        """Return the index of the option that is meant; None where the answer is none of them or cannot be read."""
        return None if self.marked is None else match_choice(self.marked, choices)


class MultipleChoice(Task):
    """Choose one of a question's options, after a look and a listen."""

    head = None
    instruction = (
        "Watch the frames and listen to the sound.\n{reference}\nReason in short paragraphs, then choose.\n"
        "Look: what you see in the frames.\nListen: what you hear, in order.\nAnswer: the letter of one option."
    )
    curves = {"accuracy": "accuracy/{kind}", "see": "chain/see", "hear": "chain/hear"}

    def question(self, sample: AVSample) -> str:
        return question_text(sample)

    def target(self, sample: AVSample) -> Target:
        answer = self.answer_text(choices_of(sample).index(true_answer(sample)), choices_of(sample))
        return Target(self.write(sample.chain, answer))

    def answer_text(self, index: int, choices: Sequence[str]) -> str:
        """Return the text by which a target answers with an option: its letter."""
        return LETTERS[index]

    def write(self, reasoning: str | None, answer: str) -> str:
        """Write a completion down.

        Args:
            reasoning: text before the answer; None for a row without it, which is answered at once.
            answer: text of the answer, see `answer_text`.
        """
        return "\n".join([*([reasoning.strip()] if reasoning else []), f"{ANSWER_LABEL} {answer}"])

    def parse(self, text: str) -> ChoiceAnswer:
        reasoning = parse_completion(text)
        marked, has_form = self.read(text, reasoning)
        return ChoiceAnswer(text, marked, has_form, reasoning)

    def read(self, text: str, reasoning: ParsedCompletion) -> tuple[str | None, bool]:
        """Read a completion back: the text that is marked as its answer, and whether its form is right.

        Args:
            text: the completion.
            reasoning: its labelled parts.
        """
        return read_marked(text, reasoning)

    def check_truth(self, sample: AVSample) -> None:
        true_answer(sample)

    def chosen(self, answer: Answer, sample: AVSample) -> int | None:
        return as_choice(answer).choose(choices_of(sample))

    def is_right(self, answer: Answer, sample: AVSample) -> bool:
        choices = choices_of(sample)
        return is_same_option(choices, self.chosen(answer, sample), choices.index(true_answer(sample)))

    def text_scores(self, answer: Answer, sample: AVSample) -> dict[str, float | None]:
        read = as_choice(answer)
        return {
            "format": float(read.has_form),
            "readable": float(self.chosen(read, sample) is not None),
            "accuracy": float(self.is_right(read, sample)),
            "see": see_score(read.reasoning, sample),
            "hear": hear_score(read.reasoning, sample),
        }


class ChoiceInWords(MultipleChoice):
    """Multiple choice whose targets answer with the option's text, which a model that is trained from scratch needs.

    To answer with a letter, a model must find the option that holds the word it means and copy the letter before it.
    A tiny model did not learn it from 32,000 rows.
    """

    instruction = MultipleChoice.instruction.replace("the letter of one option", "one option")

    def answer_text(self, index: int, choices: Sequence[str]) -> str:
        return choices[index]


def read_marked(text: str, reasoning: ParsedCompletion) -> tuple[str | None, bool]:
    """Read a completion of a look, a listen and an answer.

    Args:
        text: the completion.
        reasoning: its labelled parts.

    Returns:
        The text after "Answer:", None if that is there more than once or not at all; and whether all parts are there
        once each, in order, with nothing around them.
    """
    labels = list(_ANSWER.finditer(text))
    marked = text[labels[0].end() :].strip() if len(labels) == 1 else None
    has_parts = reasoning.step_order == PARTS and all(reasoning.steps[part] for part in PARTS)
    return marked, bool(marked) and has_parts and text.lstrip().startswith("Look:")


def question_text(sample: AVSample) -> str:
    """Write a row's question and its options, one a line with its letter; all of it is text from outside."""
    return "\n".join([sample.reference, *option_lines(sample)])


def option_lines(sample: AVSample) -> list[str]:
    """Write each option of a row after its letter."""
    return [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices_of(sample), strict=False)]


def choices_of(sample: AVSample) -> tuple[str, ...]:
    """Return a row's options; a ValueError names a row without any, which asks no multiple-choice question."""
    if not sample.choices or len(sample.choices) > len(LETTERS):
        raise ValueError(
            f"sample {sample.key} has {len(sample.choices or ())} choices: multiple choice needs 1 to {len(LETTERS)}, "
            "load rows of multiple-choice questions such as `benchmark: questions`"
        )
    return sample.choices


def true_answer(sample: AVSample) -> str:
    """Return a row's true option; a ValueError names a row whose answer is unknown or none of its options."""
    if sample.answer is None or sample.answer not in choices_of(sample):
        raise ValueError(f"sample {sample.key} has the answer {sample.answer!r}: expected one of {sample.choices}")
    return sample.answer


def as_choice(answer: Answer) -> ChoiceAnswer:
    """Return an answer of this task unchanged; a TypeError tells that it is another task's."""
    if not isinstance(answer, ChoiceAnswer):
        raise TypeError(f"this reads answers of multiple choice, not {type(answer).__name__}")
    return answer
