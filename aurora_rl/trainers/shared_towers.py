"""The outputs of frozen towers: shared by the passes of a generation batch, or read from the disk cache in SFT."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import SFTTrainer

from aurora_rl.models.grounding import segmentation_model, shared_media, sharing_tower_outputs
from aurora_rl.models.mllm.sharing import TowerSharingMixin
from aurora_rl.models.tower_outputs import ClipDigest, TowerOutputs, difference_between_passes
from aurora_rl.trainers.grounded_rollouts import new_tower_outputs
from aurora_rl.trainers.step_profile import TimedTrainer


class SharedTowersTrainer(TimedTrainer):
    """A GRPO trainer whose passes over a generation batch run frozen towers once for each clip."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        #: By mode, since an evaluation may come amid a generation batch.
        self._tower_outputs: dict[str, TowerOutputs | None] = {}
        super().__init__(*args, **kwargs)
        check_tower_cache(self.model)

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


class CachedTowersTrainer(SFTTrainer):
    """An SFT trainer whose passes read the outputs of frozen towers from the model's `tower_cache`, where it has one.

    Its batches then hold `clip_digests`, the names of their rows' clips.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_tower_cache(self.model)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Do what TRL's method does, with towers that are read."""
        with self._reading_towers(inputs):
            return super().training_step(model, inputs, *args, **kwargs)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Do what TRL's method does, with towers that are read."""
        with self._reading_towers(inputs):
            return super().prediction_step(model, inputs, *args, **kwargs)

    @contextlib.contextmanager
    def _reading_towers(self, inputs: dict[str, Any]) -> Iterator[None]:
        digests = inputs.pop("clip_digests", None)
        if digests is None:
            yield
            return
        outputs = TowerOutputs(in_step=self.is_fsdp_enabled or is_deepspeed_zero3_enabled())
        clips = list(map(ClipDigest, digests))
        with sharing_tower_outputs([self.model], outputs), shared_media(self.model, range(len(clips)), clips):
            yield


def check_tower_cache(model: nn.Module) -> None:
    """Refuse a `tower_cache` of towers that do not compute the same in every pass.

    Raises:
        ValueError: naming the part that is trained, has an adapter or is random.
    """
    inner = segmentation_model(model)
    if inner.tower_cache is None or not isinstance(inner, TowerSharingMixin):
        return
    if reason := difference_between_passes(inner.tower_modules()):
        raise ValueError(
            f"tower_cache keeps what frozen towers compute, but {reason}: set `freeze: [towers]`, take the towers out "
            "of what LoRA adapts and saves, or drop tower_cache"
        )
