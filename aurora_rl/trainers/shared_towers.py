"""The outputs of frozen towers over the passes of a generation batch: begun with it, shared, and dropped after it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from aurora_rl.models.grounding import sharing_tower_outputs
from aurora_rl.models.tower_outputs import TowerOutputs
from aurora_rl.trainers.grounded_rollouts import new_tower_outputs
from aurora_rl.trainers.step_profile import TimedTrainer


class SharedTowersTrainer(TimedTrainer):
    """A GRPO trainer whose passes over a generation batch run frozen towers once for each clip."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        #: By mode, since an evaluation may come amid a generation batch.
        self._tower_outputs: dict[str, TowerOutputs | None] = {}
        super().__init__(*args, **kwargs)

    def begin_tower_outputs(self) -> None:
        """Begin a generation batch, of whose clips nothing is kept yet."""
        self._tower_outputs[self._mode] = new_tower_outputs(self.model, self.accelerator, is_fsdp=self.is_fsdp_enabled)

    @contextlib.contextmanager
    def sharing_towers(self) -> Iterator[TowerOutputs | None]:
        """Share what is kept among the passes of a block: the policy's, and a copy's for the reference.

        The towers of that copy are the policy's, unless TRL mixes them.
        """
        outputs = self._tower_outputs.get(self._mode)
        is_same = self.ref_model is not None and not self.args.sync_ref_model
        models: list[nn.Module] = [self.model, self.ref_model] if is_same else [self.model]
        with sharing_tower_outputs(models, outputs):
            yield outputs

    def end_tower_outputs(self) -> None:
        """Drop what is kept, if no pass over these clips is left after the one that ends."""
        micro_batches = self.args.steps_per_generation * self.num_iterations
        if self._mode == "eval" or (self._step + 1) % micro_batches == 0:
            self._tower_outputs.pop(self._mode, None)
