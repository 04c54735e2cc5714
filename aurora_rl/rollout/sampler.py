"""vLLM as GRPO's sampler: it gets the weights of each step once, and every request carries a seed of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from aurora_rl.models.mllm import EncodedPrompt

if TYPE_CHECKING:
    from aurora_rl.rollout.engine import AuroraVLLMGeneration, Rollouts


class VLLMSampler:
    """Samples completions from the policy whose weights the engine is sent.

    Args:
        engine: vLLM, in this process or behind a server.
        seed: seed of the run.
        process_index: rank of this process.
    """

    def __init__(self, engine: AuroraVLLMGeneration, *, seed: int, process_index: int) -> None:
        self.engine = engine
        self.seed = seed
        self.process_index = process_index
        self._synced_step = -1
        self._turns: dict[bool, tuple[int, int]] = {}

    def generate(
        self,
        prompts: Sequence[EncodedPrompt],
        *,
        num_generations: int,
        step: int,
        is_eval: bool,
        profile: Callable[[str], contextlib.AbstractContextManager[None]],
    ) -> Rollouts:
        """Sample one completion for each row of this process.

        Args:
            prompts: the rows; a prompt's `num_generations` copies stand side by side.
            num_generations: G, the number of completions of a prompt.
            step: number of optimiser steps done; the weights are sent once a step.
            is_eval: whether the rows are evaluated, not trained on.
            profile: function from the name of a part of the step to a context manager that times it.
        """
        if step != self._synced_step:
            with profile("sync_weights"):
                self.engine.sync_weights()
            self._synced_step = step
        return self.engine.generate_rows(
            prompts,
            seeds=self.request_seeds(len(prompts), step=step, is_eval=is_eval),
            num_generations=num_generations,
            profiler=profile("vLLM.generate"),
        )

    def request_seeds(self, num_rows: int, *, step: int, is_eval: bool) -> list[int]:
        """Return a seed for each row, from the run's seed, the step and the row's place, so that resuming is exact."""
        last_step, turn = self._turns.get(is_eval, (-1, 0))
        turn = turn + 1 if last_step == step else 0
        self._turns[is_eval] = (step, turn)
        first = self.process_index * num_rows
        keys = [(self.seed, step, is_eval, turn, first + row) for row in range(num_rows)]
        return [int(np.random.SeedSequence(key).generate_state(1)[0]) for key in keys]
