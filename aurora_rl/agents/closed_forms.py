"""How often agents who err at known rates are right: in closed form, and by the agents' own code with scripted voices.

What the rounds do is compared with what they must do: a majority of independent voters beats each of them, one of
copies does not; a check that sees mends masks, one that guesses helps nothing.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from aurora_rl.agents.consensus import Vote, delphi
from aurora_rl.agents.investigation import AgentArguments, Segmentation, investigate
from aurora_rl.agents.roles import Role

#: Masks that show the target, and masks that do not.
RIGHT, WRONG = np.ones((1, 2, 2), bool), np.zeros((1, 2, 2), bool)


class ScriptedVoices:
    """Voices that answer by functions of the role's name, see `agents.investigation.Voices`; notes what was said.

    Args:
        answers: a role's name -> function of what it is told, by keywords, that returns the fields of its reply.
            Without one a role takes every reference for hard and heard, means the drum, and accepts.
    """

    def __init__(self, **answers: Callable[..., dict[str, str]]) -> None:
        usual: dict[str, Callable[..., dict[str, str]]] = {
            "recognise": lambda **said: {"difficulty": "hard", "modality": "sound", "reason": "r"},
            "reason": lambda **said: {"target": "the drum", "reason": "r"},
            "judge": lambda **said: {"target": "the drum", "reason": "r"},
            "phrase": lambda **said: {"phrase": "drum"},
            "check": lambda **said: {"verdict": "accept", "reason": "r"},
        }
        self.answers = usual | answers
        self.said: list[tuple[str, str]] = []

    async def say(self, role: Role, text: str, **given: Any) -> dict[str, str]:
        """Return what the role's function answers, without a wait."""
        self.said.append((role.name, text))
        return self.answers[role.name](role=role, text=text, **given)

    def roles(self) -> list[str]:
        """Return the names of the roles that spoke, in order."""
        return [name for name, _ in self.said]


def majority_rate(rate: float, agents: int) -> float:
    """Compute how often most of an odd number of independent voters are right: sum_k>n/2 C(n, k) p^k (1 - p)^(n - k).

    >>> round(majority_rate(0.7, 3), 3)
    0.784
    """
    more = range(agents // 2 + 1, agents + 1)
    return sum(math.comb(agents, k) * rate**k * (1 - rate) ** (agents - k) for k in more)


def checked_rate(tries: float, sensitivity: float, false_alarm: float, checks: int) -> float:
    """Compute how often the masks of the end are right: a sum_t<k w^t + q w^k.

    With q = `tries`, a = q (1 - f) is a right and accepted try and w = q f + (1 - q) s a rejected one; what is wrong
    and accepted stands. The masks after the last of k checks stand unchecked.

    >>> round(checked_rate(0.6, 0.9, 0.1, 3), 3), round(checked_rate(0.6, 0.5, 0.5, 3), 3)
    (0.907, 0.6)

    Args:
        tries: how often the segmenter's masks are right, each time anew.
        sensitivity: how often the check rejects wrong masks.
        false_alarm: how often it rejects right ones.
        checks: largest number of checks.
    """
    accepted, rejected = tries * (1 - false_alarm), tries * false_alarm + (1 - tries) * sensitivity
    return accepted * sum(rejected**number for number in range(checks)) + tries * rejected**checks


def vote_rows(rate: float, agents: int, rows: int, *, copies: bool = False, seed: int = 0) -> list[float]:
    """Let scripted agents vote on rows, one round each, and return 1 for each right decision.

    Args:
        rate: how often an agent is right.
        agents: number of agents.
        rows: number of rows.
        copies: whether all agents say what the first one says.
        seed: seed of the draws.
    """
    rng = random.Random(seed)

    async def ask(last: Any) -> list[Vote]:
        votes = [Vote(str(rng.random() < rate)) for _ in range(1 if copies else agents)]
        return votes * agents if copies else votes

    async def decide() -> list[float]:
        return [float((await delphi(ask, max_rounds=1)).label == "True") for _ in range(rows)]

    return asyncio.run(decide())


def check_rows(
    tries: float, sensitivity: float, false_alarm: float, checks: int, rows: int, *, seed: int = 0
) -> list[float]:
    """Let the agents work on rows with a segmenter and a check of known rates, and return 1 for each right mask.

    The arguments are those of `checked_rate`.
    """
    rng = random.Random(seed)

    def segment(phrase: str) -> Segmentation:
        return Segmentation(RIGHT if rng.random() < tries else WRONG)

    def check(masks: np.ndarray, **said: Any) -> dict[str, str]:
        rejects = rng.random() < (false_alarm if masks.all() else sensitivity)
        return {"verdict": "rephrase" if rejects else "accept", "reason": "r"}

    async def work() -> list[float]:
        args, voices = AgentArguments(agents=1, max_checks=checks), ScriptedVoices(check=check)
        found = [await investigate("the loud one", voices, segment, args) for _ in range(rows)]
        return [float(row.masks is RIGHT) for row in found]

    return asyncio.run(work())
