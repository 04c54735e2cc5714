"""Rewards of choosing tools: whether a frozen reasoner is right with the chosen set, read from a table.

`tool_gain_reward` is AuTAgent's differential form, `tool_choice_reward` the form that works here: accuracy with a price
for each tool. In both an unreadable set earns no more than a wrong answer, or a policy learns to write none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aurora_rl.data.sample import AVSample
from aurora_rl.data.tool_table import Rights, rights_of
from aurora_rl.rewards import reads
from aurora_rl.tasks.base import Answer
from aurora_rl.tasks.completions import completion_text
from aurora_rl.tasks.tool_choice import ToolChoice, ToolsAnswer, chosen_tools

#: Shares of the reasoner's gain and of the form (AuTAgent, as FGPO section B.4 restates it).
GAIN, FORM = 0.95, 0.05
#: Price of all tools, beside the ±1 of a right and a wrong answer.
PRICE = 0.1


@reads(ToolsAnswer)
def tool_gain_reward(
    prompts: list[Any],
    completions: list[Any],
    *,
    sample: Sequence[AVSample],
    answers: Sequence[Answer] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Return 0.95 (1[right with the tools] - 1[right without]) + 0.05 for a set that can be read (AuTAgent).

    Examples: the reasoner is wrong alone and right with the set: 1.0. It is right alone and wrong with the set: -0.9.
    Right both times: 0.05. An unreadable set where it is right alone: -0.95, what a wrong answer earns without the
    form's share; the paper's 0 would be above the -0.9 of a wrong one.

    In GRPO this is accuracy: 1[right without] is one number for a group and falls out of (r - mean) / std, so where all
    sets of a group can be read, the advantages are those of `tool_choice_reward` without its price.

    Args:
        prompts: not read.
        completions: text or chat messages.
        sample: the row of each completion, of `data.tool_table.load_tool_questions`.
        answers: the completions as the run's task has read them; None to read them as `ToolChoice` does.
        **columns: not read.

    Raises:
        ValueError: naming a row that the table lacks.
    """
    return [
        GAIN * (float(rights[chosen]) - rights[()]) + FORM if chosen is not None else -GAIN * rights[()]
        for rights, chosen in _looked_up(completions, sample, answers)
    ]


@reads(ToolsAnswer)
def tool_choice_reward(
    prompts: list[Any],
    completions: list[Any],
    *,
    sample: Sequence[AVSample],
    answers: Sequence[Answer] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Return 1 where the reasoner is right with the tools and -1 where not, + 0.1 (1 - 2 |a| / n) for a of n tools.

    Examples of three tools: right with one of them 1.033, with none 1.1, with all 0.9; wrong with none -0.9, with all
    -1.1; unreadable -1.1, the least that a set can earn. The price breaks the ties of groups that are all right or all
    wrong.

    Args:
        prompts: not read.
        completions: text or chat messages.
        sample: the row of each completion, of `data.tool_table.load_tool_questions`.
        answers: the completions as the run's task has read them; None to read them as `ToolChoice` does.
        **columns: not read.

    Raises:
        ValueError: naming a row that the table lacks.
    """
    return [choice_reward(rights, chosen) for rights, chosen in _looked_up(completions, sample, answers)]


def choice_reward(rights: Rights, chosen: tuple[int, ...] | None) -> float:
    """Return the reward of one set, see `tool_choice_reward`; None stands for an unreadable one."""
    if chosen is None:
        return -1.0 - PRICE
    count = max(map(len, rights))
    return (1.0 if rights[chosen] else -1.0) + PRICE * (1 - 2 * len(chosen) / count)


def _looked_up(
    completions: Sequence[Any], samples: Sequence[AVSample], answers: Sequence[Answer] | None
) -> list[tuple[Rights, tuple[int, ...] | None]]:
    """Pair what the table says of each row with the set that is chosen there."""
    if answers is None:
        task = ToolChoice()
        answers = [task.parse(completion_text(completion)) for completion in completions]
    return [(rights_of(sample), chosen_tools(answer, sample)) for answer, sample in zip(answers, samples, strict=True)]
