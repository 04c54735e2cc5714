"""vLLM as GRPO's sampler: it gets the weights of each step once, and every request carries a seed of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from aurora_rl.models.encoding import EncodedSample
from aurora_rl.models.mllm import EncodedPrompt
from aurora_rl.rollout.base import Rollouts, Turn, continued_prompt

if TYPE_CHECKING:
    from aurora_rl.rollout.engine import AuroraVLLMGeneration


class VLLMSource:
    """Samples completions from the policy whose weights the engine is sent.

    Args:
        engine: vLLM, in this process or behind a server.
        seed: seed of the run.
    """

    def __init__(self, engine: AuroraVLLMGeneration, *, seed: int) -> None:
        self.engine = engine
        self.seed = seed
        self._synced_step = -1
        self._calls: dict[bool, tuple[int, int]] = {}

    def generate(self, prompt_ids: Sequence[Sequence[int]], rows: Sequence[EncodedSample], turn: Turn) -> Rollouts:
        """Sample one completion for each prompt, see `RolloutSource.generate`; the weights are sent once a step."""
        prompts = self._prepare(prompt_ids, rows, turn)
        return self.engine.generate_rows(
            prompts,
            seeds=self.request_seeds(len(prompts), turn),
            num_generations=turn.num_generations,
            profiler=turn.profile("vLLM.generate"),
        )

    def begin(
        self, prompt_ids: Sequence[Sequence[int]], rows: Sequence[EncodedSample], turn: Turn
    ) -> Callable[[], Rollouts]:
        """Begin to sample what `generate` returns, see `AuroraVLLMGeneration.begin_rows`."""
        prompts = self._prepare(prompt_ids, rows, turn)
        seeds = self.request_seeds(len(prompts), turn)
        return self.engine.begin_rows(prompts, seeds=seeds, num_generations=turn.num_generations)

    def _prepare(
        self, prompt_ids: Sequence[Sequence[int]], rows: Sequence[EncodedSample], turn: Turn
    ) -> list[EncodedPrompt]:
        prompts = [continued_prompt(row, ids) for row, ids in zip(rows, prompt_ids, strict=True)]
        if turn.step != self._synced_step:
            with turn.profile("sync_weights"):
                self.engine.sync_weights()
            self._synced_step = turn.step
        return prompts

    def request_seeds(self, num_rows: int, turn: Turn) -> list[int]:
        """Return a seed for each row, from the run's seed, the step and the row's place, so that resuming is exact."""
        step, is_eval = turn.step, turn.is_eval
        last_step, call = self._calls.get(is_eval, (-1, 0))
        call = call + 1 if last_step == step else 0
        self._calls[is_eval] = (step, call)
        keys = [(self.seed, step, is_eval, call, turn.first_row + row) for row in range(num_rows)]
        return [int(np.random.SeedSequence(key).generate_state(1)[0]) for key in keys]
