"""Choosing tools: a question about a sound and a list of tools; the numbers of those to run, once. No masks.

    How fast is it?                                        <answer>0,2</answer>
    A. 90 beats a minute
    B. 120 beats a minute
    Tools:
    0. tempo: Tell the tempo in beats a minute
    1. pitch: Tell the pitch of the strongest note
    2. loudness: Tell how loud the sound is over time

The tools run, and a frozen reasoner answers with their words (AuTAgent, arXiv 2602.13685). What it answers with each
set stands in a table, `data.tool_table`, so that nothing is asked while the policy learns.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from typing import ClassVar

from aurora_rl.data.sample import AVSample
from aurora_rl.data.tool_table import all_sets, rights_of, set_text
from aurora_rl.tasks.base import Answer, Target, Task
from aurora_rl.tasks.multiple_choice import option_lines

_ANSWER = re.compile(r"\s*<answer>\s*(?P<set>(?:\d{1,2}(?:\s*,\s*\d{1,2})*)?)\s*</answer>\s*")


@dataclasses.dataclass(frozen=True)
class ToolsAnswer(Answer):
    """A completion as the choice of tools reads it.

    Attributes:
        tools: numbers of the tools, in order; None if the completion is anything but one answer of different numbers.
    """

    tools: tuple[int, ...] | None

    @property
    def value(self) -> str | None:
        """The numbers in order, such as "0,2"; "none" for no tool."""
        return None if self.tools is None else set_text(self.tools) or "none"

    def among(self, count: int) -> tuple[int, ...] | None:
        """Return the set; None if it cannot be read, or names a tool beyond the `count` that there are."""
        return None if self.tools is None or any(tool >= count for tool in self.tools) else self.tools


class ToolChoice(Task):
    """Choose the tools whose words help a frozen reasoner to answer a question."""

    head = None
    instruction = (
        "Somebody who hears a sound is asked the following, and may be told what tools measure in it.\n{reference}\n"
        "Write the numbers of the tools that would help, as few as are needed, between <answer> and </answer>, such as "
        "<answer>0,2</answer>; <answer></answer> for none."
    )
    curves: ClassVar[Mapping[str, str]] = {"accuracy": "accuracy/{kind}", "readable": "readable", "tools": "tools"}
    meanings: ClassVar[Mapping[str, str]] = {
        "accuracy": "the reasoner is right with the chosen tools; an unreadable set is wrong",
        "readable": "the completion is one set of tools that exist",
        "tools": "share of the tools that are chosen",
    }

    def question(self, sample: AVSample) -> str:
        tools = sample.extra_columns["tools"]
        listed = [f"{number}. {name}: {description}" for number, (name, description) in enumerate(tools)]
        return "\n".join([sample.reference, *option_lines(sample), "Tools:", *listed])

    def target(self, sample: AVSample) -> Target:
        """Return a set that is drawn by the row's key alone: it teaches the form, and nothing about the tools."""
        answers = self.answers(sample)
        drawn = int.from_bytes(hashlib.sha256(sample.key.encode()).digest()[:8], "big") % len(answers)
        return Target(answers[drawn])

    def answers(self, sample: AVSample) -> list[str]:
        return [f"<answer>{set_text(chosen)}</answer>" for chosen in all_sets(len(sample.extra_columns["tools"]))]

    def parse(self, text: str) -> ToolsAnswer:
        found = _ANSWER.fullmatch(text)
        numbers = [int(number) for number in re.findall(r"\d+", found["set"])] if found else []
        is_set = found is not None and len(set(numbers)) == len(numbers)
        return ToolsAnswer(text, tuple(sorted(numbers)) if is_set else None)

    def check_truth(self, sample: AVSample) -> None:
        rights_of(sample)

    def is_right(self, answer: Answer, sample: AVSample) -> bool:
        chosen = chosen_tools(answer, sample)
        return chosen is not None and rights_of(sample)[chosen]

    def text_scores(self, answer: Answer, sample: AVSample) -> dict[str, float | None]:
        chosen, count = chosen_tools(answer, sample), len(sample.extra_columns["tools"])
        return {
            "readable": float(chosen is not None),
            "accuracy": float(self.is_right(answer, sample)),
            "tools": None if chosen is None else len(chosen) / count,
        }


def chosen_tools(answer: Answer, sample: AVSample) -> tuple[int, ...] | None:
    """Return the tools that an answer chooses from a row's own; None where it cannot be read.

    Raises:
        TypeError: if it is the answer of another task.
    """
    if not isinstance(answer, ToolsAnswer):
        raise TypeError(f"this reads choices of tools, not {type(answer).__name__}")
    return answer.among(len(sample.extra_columns["tools"]))
