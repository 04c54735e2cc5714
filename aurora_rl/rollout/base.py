"""A source of rollouts completes prompts: `TransformersSource` by the policy itself, `VLLMSource` by an engine.

It is handed ids and rows of the prompts that it is asked about, which may be some of a batch and may have had turns
before: their ids then go on after the row's own prompt, and the media are the row's still.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from aurora_rl.models.encoding import EncodedSample
from aurora_rl.models.mllm import EncodedPrompt
from aurora_rl.models.rollout_states import SegStates


@dataclasses.dataclass(frozen=True)
class Turn:
    """What a source knows of the run when it is asked.

    Attributes:
        num_generations: number of completions of a prompt, over all processes; its copies stand side by side.
        step: number of optimiser steps done.
        is_eval: whether the rows are evaluated, not trained on.
        first_row: place of this process's first row among those of all processes.
        profile: function from the name of a part of the step to a context manager that times it.
    """

    num_generations: int
    step: int = 0
    is_eval: bool = False
    first_row: int = 0
    profile: Callable[[str], contextlib.AbstractContextManager[None]] = lambda _: contextlib.nullcontext()


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Completions of some rows.

    Attributes:
        completion_ids: ids of each row's completion.
        logprobs: log-probability of each sampled token, after temperature and suppression, row by row; None from a
            source that leaves them to the policy's own forward pass.
        states: states at the completions' head token; None from a source that has none.
    """

    completion_ids: list[list[int]]
    logprobs: list[list[float]] | None = None
    states: SegStates | None = None


class RolloutSource(Protocol):
    """Whatever completes prompts for training."""

    def generate(self, prompt_ids: Sequence[Sequence[int]], rows: Sequence[EncodedSample], turn: Turn) -> Rollouts:
        """Sample one completion for each prompt.

        Args:
            prompt_ids: token ids of each prompt, media placeholders expanded; they begin with the row's own prompt.
            rows: the encoded row of each prompt, which has its media.
            turn: what is known of the run.

        Raises:
            ValueError: if ids and rows do not belong together.
        """


def continued_prompt(row: EncodedSample, prompt_ids: Sequence[int]) -> EncodedPrompt:
    """Return a row's prompt with all that has been said since.

    Raises:
        ValueError: if the ids do not begin with the row's prompt, whose placeholders its media belong to.
    """
    own = row.prompt.prompt_ids
    if list(prompt_ids[: len(own)]) != list(own):
        raise ValueError(
            f"sample {row.sample.key}: a turn's {len(prompt_ids)} ids do not begin with the {len(own)} of the row's "
            "prompt: hand over each prompt with its own row"
        )
    said = prompt_ids[len(own) :]
    return row.prompt.extended(said) if said else row.prompt
