"""One step off-policy: a vLLM server samples the next rollouts while the present ones are trained on.

    turn of batch k    take the rollouts of k, sampled by the policy before batch k - 1 was trained on
                       send the present weights, begin the rollouts of k + 1
                       score and train on k; media of k + 2 are read meanwhile

What TRL keeps of a batch, its random numbers and the collectives of several processes stay in the main thread and in
their order; only the requests to the server are in another one (`rollout/ahead.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aurora_rl.data.sample import AVSample
from aurora_rl.models.encoding import EncodedSample
from aurora_rl.rollout.ahead import AheadSource
from aurora_rl.rollout.vllm_source import VLLMSource
from aurora_rl.trainers.upcoming import ReadAheadTrainer


class OffPolicyTrainer(ReadAheadTrainer):
    """A GRPO trainer that samples one generation batch ahead where `one_step_off_policy` asks for it."""

    vllm_generation: Any
    _metrics: dict[str, Any]
    _sampled_ahead: AheadSource | None = None
    _next_rows: list[EncodedSample] = []

    def vllm_source(self) -> VLLMSource | AheadSource:
        """Return the source of rollouts by vLLM, once `vllm_generation` is there."""
        source = VLLMSource(self.vllm_generation, seed=self.args.seed)
        if not self.args.one_step_off_policy:
            return source
        self._sampled_ahead = AheadSource(source, lambda: self._next_rows, self._log_lag)
        return self._sampled_ahead

    def _log_lag(self, steps: int) -> None:
        self._metrics["train"]["sampling/lag_steps"].append(steps)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `ReadAheadTrainer` does, and drop at the end what was begun for later."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._next_rows = []
            if self._sampled_ahead is not None:
                self._sampled_ahead.forget()

    def _encode_rows(self, inputs: list[dict[str, Any]]) -> list[EncodedSample]:
        """Encode the next batch, too, and read the one after it ahead."""
        if self._sampled_ahead is None or not self.model.training:
            return super()._encode_rows(inputs)
        samples = [AVSample.from_row(row) for row in inputs]
        is_here = samples == [row.sample for row in self._next_rows]
        rows = self._next_rows if is_here else self._ahead.take(samples)
        self._next_rows = self._ahead.take([AVSample.from_row(row) for row in self._next_generation_batch()])
        self._ahead.begin([AVSample.from_row(row) for row in self._next_generation_batch(further=1)])
        return rows

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._sampled_ahead is not None:
            self._sampled_ahead.save(self._rollouts_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if self._sampled_ahead is not None and checkpoint is not None:
            self._sampled_ahead.load(self._rollouts_file(checkpoint))

    def _rollouts_file(self, checkpoint: str) -> Path:
        return Path(checkpoint, f"rollouts_ahead_{self.accelerator.process_index}.json")
