"""Multiple choice between tags: `<think>` holds the reasoning, `<answer>` a letter. No masks.

    What is the source of the sound?        <think>The picture shows a drum, but what I hear rings like a bell.</think>
    Options:                                <answer>B</answer>
    A. drum
    B. bell

`ThinkAnswer` is the form of EchoInk-R1 (arXiv 2505.04623), `PlannedAnswer` the structured reasoning of SARI (arXiv
2504.15900). Each answer is scored by the rules of all benchmarks side by side, `tasks.matchers`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from aurora_rl.data.chains import ChainFile
from aurora_rl.data.sample import AVSample
from aurora_rl.tasks.base import Answer
from aurora_rl.tasks.completions import ParsedCompletion
from aurora_rl.tasks.matchers import MATCHERS
from aurora_rl.tasks.multiple_choice import MultipleChoice, as_choice, choices_of, option_lines, true_answer

_TAGS = re.compile(r"</?(?:think|answer)>")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_ORDER = ["<think>", "</think>", "<answer>", "</answer>"]
#: The step of a record of chains that holds free reasoning.
FREE_STEP = "thought"


class ThinkAnswer(MultipleChoice):
    """Choose an option after free reasoning, each between its tags."""

    instruction = (
        "{reference}\nTake your time: look at the picture, listen to the sound, talk to yourself, doubt and check what "
        "you believe. Write your reasoning between <think> and </think>, and then between <answer> and </answer> only "
        "the letter of one option."
    )
    curves = {"accuracy": "accuracy/{kind}"}
    meanings: ClassVar[dict[str, str]] = {
        "accuracy": "the marked answer is the right option's letter, text, or both; anything else is wrong",
        "readable": "one answer is marked, and it is an option",
        "accuracy_mmau": "as the scripts of MMAU and MMAR count: words of the right option, none of another",
        "accuracy_mmsu": "as the script of MMSU counts: first or last but one character; others are left out",
        "accuracy_echoink": "as the script of EchoInk-R1 counts: the first letter A to D that stands free",
    }

    def question(self, sample: AVSample) -> str:
        return "\n".join([f"{sample.reference} Options:", *option_lines(sample)])

    def write(self, reasoning: str | None, answer: str) -> str:
        thought = [f"<think>{reasoning.strip()}</think>"] if reasoning else []
        return "\n".join([*thought, f"<answer>{answer}</answer>"])

    def chain_file(self, path: str | os.PathLike[str]) -> ChainFile:
        return ChainFile(Path(path), lambda steps, answer: self.reasoning(steps), answer_token="<answer>")

    def reasoning(self, steps: Mapping[str, str]) -> str:
        """Join the steps of a chain of thought into the text of `<think>`.

        Raises:
            ValueError: if a step is missing.
        """
        return _step(steps, FREE_STEP)

    def read(self, text: str, reasoning: ParsedCompletion) -> tuple[str | None, bool]:
        found = _ANSWER.findall(text)
        marked = found[0].strip() if len(found) == 1 else None
        return marked, bool(marked) and self.has_form(text)

    def has_form(self, text: str) -> bool:
        """Tell whether the completion is one `<think>` part and one `<answer>` part, with nothing around them."""
        return _TAGS.findall(text) == _ORDER and _is_whole(text, "think", "answer")

    def text_scores(self, answer: Answer, sample: AVSample) -> dict[str, float | None]:
        """Score an answer; the rules of other benchmarks read the marked text, or all of it if none is marked."""
        read, choices = as_choice(answer), choices_of(sample)
        right = choices.index(true_answer(sample))
        said = read.text if read.marked is None else read.marked
        official = {name: match(said, choices, right) for name, match in MATCHERS.items() if name != "strict"}
        return {
            "format": float(read.has_form),
            "readable": float(read.choose(choices) is not None),
            "accuracy": float(self.is_right(read, sample)),
            **{f"accuracy_{name}": None if told is None else float(told) for name, told in official.items()},
        }


class ThinkAnswerInWords(ThinkAnswer):
    """The same form with the option's text in `<answer>`, for a tiny model that is trained from scratch.

    `multiple_choice.ChoiceInWords` says why.
    """

    instruction = ThinkAnswer.instruction.replace("the letter of one option", "one option")

    def answer_text(self, index: int, choices: Sequence[str]) -> str:
        return choices[index]


class PlannedAnswer(ThinkAnswer):
    """Choose an option after reasoning in four parts: a plan, what is heard, the reasoning, its summary.

    The paper does not show its tags; these are Audio-Reasoner's, in lower case.
    """

    parts: ClassVar[tuple[str, ...]] = ("planning", "caption", "reasoning", "summary")
    instruction = (
        "Listen to the sound.\n{reference}\nThink between <think> and </think> in four parts: <planning> how you will "
        "find the answer </planning>, <caption> what is heard </caption>, <reasoning> what follows from it "
        "</reasoning>, <summary> the conclusion </summary>. Then write between <answer> and </answer> only the letter "
        "of one option."
    )

    def reasoning(self, steps: Mapping[str, str]) -> str:
        return "\n".join(f"<{part}>{_step(steps, part)}</{part}>" for part in self.parts)

    def has_form(self, text: str) -> bool:
        """Tell whether the four parts stand in `<think>` once each, in order and not empty, and nothing around them."""
        tags = re.compile(rf"</?(?:think|answer|{'|'.join(self.parts)})>")
        inner = [tag for part in self.parts for tag in (f"<{part}>", f"</{part}>")]
        if tags.findall(text) != ["<think>", *inner, "</think>", "<answer>", "</answer>"]:
            return False
        thought = text.partition("<think>")[2].partition("</think>")[0]
        return _is_whole(text, "think", "answer") and _is_whole(thought, *self.parts)


class PlannedAnswerInWords(PlannedAnswer):
    """The four parts with the option's text in `<answer>`, for a tiny model as `ThinkAnswerInWords` is."""

    instruction = PlannedAnswer.instruction.replace("the letter of one option", "one option")

    def answer_text(self, index: int, choices: Sequence[str]) -> str:
        return choices[index]


def _step(steps: Mapping[str, str], name: str) -> str:
    """Return the text of a step; a ValueError tells that it is missing or holds a tag, which would be read as one."""
    text = str(steps.get(name) or "").strip()
    if not text or "<" in text:
        raise ValueError(f"the chain's step {name!r} is {text[:80]!r}: expected text without '<'")
    return text


def _is_whole(text: str, *parts: str) -> bool:
    """Tell whether a text is nothing but these parts, none of them empty; its tags are known to be in order."""
    pieces = re.split("|".join(f"</?{part}>" for part in parts), text)
    inside, around = pieces[1::2], pieces[::2]
    return all(piece.strip() for piece in inside) and not any(piece.strip() for piece in around)
