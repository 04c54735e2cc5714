"""Completions of the next batch, sampled by the server while the present one is trained on.

They are those of the policy before that training, one generation batch behind the one that learns from them. The
present policy scores them at their turn, and TRL corrects the loss by the ratio of the two
(`vllm_importance_sampling_correction`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate.utils import gather_object

from aurora_rl.files.atomic import write_whole
from aurora_rl.files.plain import parse_json, read_text_file
from aurora_rl.models.encoding import EncodedSample
from aurora_rl.rollout.base import Rollouts, Turn
from aurora_rl.rollout.vllm_source import VLLMSource


@dataclasses.dataclass(frozen=True)
class Begun:
    """Completions that are being sampled.

    Attributes:
        keys: keys of this process's rows.
        step: number of optimiser steps of the policy that samples.
        rollouts: function that waits for them; every process calls it.
    """

    keys: list[str]
    step: int
    rollouts: Callable[[], Rollouts]


class AheadSource:
    """A source of rollouts that begins the next batch's when the present ones are there.

    Weights and prompts are exchanged between processes where a batch begins and where it is taken, never in the thread
    that waits for the server. While it samples, the server keeps its weights: an evaluation waits until it is done.

    Args:
        source: a vLLM server.
        next_rows: function that returns this process's rows of the next batch; none if the run ends before it.
        log_lag: is told the number of optimiser steps between the policy that sampled and the one that learns.
    """

    def __init__(
        self, source: VLLMSource, next_rows: Callable[[], Sequence[EncodedSample]], log_lag: Callable[[int], None]
    ) -> None:
        self.source = source
        self.next_rows = next_rows
        self.log_lag = log_lag
        self._begun: Begun | None = None

    def generate(self, prompt_ids: Sequence[Sequence[int]], rows: Sequence[EncodedSample], turn: Turn) -> Rollouts:
        """Return the completions that were begun before, if they are of these rows, and begin those of the next.

        The first batch of a run is sampled here, by the present policy.
        """
        if self._begun is not None:
            with turn.profile("vLLM.generate"):
                self.wait()
        if turn.is_eval:
            return self.source.generate(prompt_ids, rows, turn)
        begun, self._begun = self._begun, None
        if begun is not None and all(gather_object([begun.keys == _keys(rows)])):
            rollouts, step = begun.rollouts(), begun.step
        else:
            rollouts, step = self.source.generate(prompt_ids, rows, turn), turn.step
        self.log_lag(turn.step - step)
        if upcoming := self.next_rows():
            ids = [row.prompt.prompt_ids for row in upcoming]
            self._begun = Begun(_keys(upcoming), turn.step, self.source.begin(ids, upcoming, turn))
        return rollouts

    def wait(self) -> None:
        """Wait for the completions that were begun, and keep them."""
        if self._begun is not None:
            rollouts = self._begun.rollouts()
            self._begun = dataclasses.replace(self._begun, rollouts=lambda: rollouts)

    def forget(self) -> None:
        """Drop the completions that were begun."""
        self._begun = None

    def save(self, path: Path) -> None:
        """Write the completions that were begun, for a run that resumes here: they cannot be sampled again.

        The policy that has sampled them is not that of the checkpoint.
        """
        self.wait()
        if self._begun is not None:
            rollouts = self._begun.rollouts()
            record = {"completion_ids": rollouts.completion_ids, "logprobs": rollouts.logprobs}
            write_whole(path, json.dumps({"keys": self._begun.keys, "step": self._begun.step, **record}))

    def load(self, path: Path) -> None:
        """Read what `save` has written, if all processes find theirs; a checkpoint of a run on policy has nothing."""
        if all(gather_object([path.is_file()])):
            record = parse_json(read_text_file(path))
            rollouts = Rollouts(record["completion_ids"], record["logprobs"])
            self._begun = Begun(record["keys"], record["step"], lambda: rollouts)


def _keys(rows: Sequence[EncodedSample]) -> list[str]:
    return [row.sample.key for row in rows]
