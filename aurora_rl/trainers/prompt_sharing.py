"""Whether the forward passes share prompts, and the order of rows by which the micro-batches hold whole groups.

Sharing is on where it computes the same (`models.shared_prefix`): not for a decoder that cannot do it, and not if the
first batch shows a difference, which is looked for on every run.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from trl import GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from aurora_rl.models.encoding import EncodedSample
from aurora_rl.models.grounding import segmentation_model
from aurora_rl.models.packed_layout import PackedLayout, pack
from aurora_rl.models.shared_prefix import enable, reason_against
from aurora_rl.trainers.enumerated_answers import EnumeratedAnswersTrainer
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig

logger = logging.getLogger(__name__)

#: Largest mean difference of a token's log-probability between both ways. A wrong position or mask makes tenths and
#: more; in half precision the order of sums alone makes a hundredth.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
MIXED = {"fp16": torch.float16, "bf16": torch.bfloat16}


class PromptSharing:
    """Whether the rows of a group share their prompt in the forward passes.

    Args:
        accelerator: the trainer's.
        is_on: whether they may.

    Attributes:
        is_on: whether they do.
        is_tried: whether that has been decided: off from the start, or both ways were compared.
    """

    def __init__(self, accelerator: Accelerator, *, is_on: bool) -> None:
        self.accelerator = accelerator
        self.is_on = is_on
        self.is_tried = not is_on

    def layout(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        rows: Sequence[EncodedSample],
        num_completion_tokens: int,
    ) -> PackedLayout | None:
        """Lay out a batch as one row in which rows of one prompt share it; None if each row stays a row."""
        if not self.is_on:
            return None
        return pack(input_ids, attention_mask, num_completion_tokens, [id(row.prompt) for row in rows])

    def decide(
        self, model: torch.nn.Module, shared: torch.Tensor | Exception, plain: torch.Tensor, mask: torch.Tensor
    ) -> None:
        """Switch sharing off, on all processes, if both ways differ too much on one of them, or one way fails.

        Args:
            model: the model, whose dtype decides on the tolerance.
            shared: (B, C) log-probabilities of one group that has shared its prompt; or the error of a kernel.
            plain: (B, C) the same, each row by itself.
            mask: (B, C) completion tokens.
        """
        dtype = MIXED.get(self.accelerator.mixed_precision, segmentation_model(model).get_decoder().dtype)
        error, shared = (shared, plain * torch.nan) if isinstance(shared, Exception) else (None, shared)
        difference = (shared - plain).abs()[mask.bool()].sum() / mask.sum().clamp(min=1)
        worst = self.accelerator.gather(difference.float().reshape(1)).max().item()
        self.is_on, self.is_tried = worst <= TOLERANCE[dtype], True  # NaN is no agreement either
        if error is not None:  # the other processes do not know it
            logger.warning("prompts are not shared, so that steps take longer: %s. Please report it", error)
        if error is not None or not self.accelerator.is_main_process:
            return
        found = f"log-probabilities of the first group differ by {worst:.1e} on average ({dtype}, {TOLERANCE[dtype]:g}"
        if self.is_on:
            logger.info("prompts are shared within groups: %s is allowed)", found)
        else:
            logger.warning("prompts are not shared, so that steps take longer: %s is allowed). Please report it", found)


def share_prompts(trainer: GRPOTrainer) -> PromptSharing:
    """Prepare a trainer's models, with which it begins to train, for sharing; or say why prompts are not shared."""
    args: AuroraGRPOConfig = trainer.args
    if not args.share_prompts:
        return PromptSharing(trainer.accelerator, is_on=False)
    reason = _reason_of_run(trainer) or reason_against(trainer.model)
    if reason is not None:
        if trainer.accelerator.is_main_process:
            logger.warning("prompts are not shared within groups: %s. share_prompts: false hides this line", reason)
        return PromptSharing(trainer.accelerator, is_on=False)
    for model in (trainer.model, trainer.ref_model):
        if model is not None:
            enable(model)
    return PromptSharing(trainer.accelerator, is_on=True)


def _reason_of_run(trainer: GRPOTrainer) -> str | None:
    """Return why a run, whatever its model, reads no packed rows; None where it can."""
    if trainer.args.torch_compile:
        return "the model is compiled"
    split = trainer.accelerator.parallelism_config
    if split is not None and (split.cp_enabled or split.sp_enabled):
        return "context or sequence parallelism cuts a row into pieces, and a branch must see all of its prompt"
    return None


class WholeGroupsTrainer(EnumeratedAnswersTrainer):
    """A GRPO trainer that trains on the rows that teach, and shuffles groups where they belong together."""

    _passes: Any
    _buffered_inputs: Any

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """Do what TRL's method does; its shuffling of rows would spread a group over all micro-batches."""
        needs_groups = self._passes.sharing.is_on or self.args.enumerate_answers
        if not (self.model.training and needs_groups):
            return super()._prepare_inputs(generation_batch)
        generate_every = self.args.steps_per_generation * self.num_iterations
        if self._step % generate_every == 0 or self._buffered_inputs is None:
            generation_batch = shuffle_groups(self._generate_and_score_completions(generation_batch))
            self._buffered_inputs = split_tensor_dict(generation_batch, self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]


def shuffle_groups(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Shuffle a generation batch as TRL's `shuffle_sequence_dict` does, neighbours of one prompt staying together.

    Args:
        batch: tensors and lists of one entry a row, `encoded_rows` among them; scalars and None stay as they are.
    """
    rows = batch["encoded_rows"]
    groups = [list(group) for _, group in itertools.groupby(range(len(rows)), lambda row: id(rows[row].prompt))]
    order = [row for number in torch.randperm(len(groups)).tolist() for row in groups[number]]

    def in_order(values: Any) -> Any:
        if values is None or (isinstance(values, torch.Tensor) and values.ndim == 0):
            return values
        return values[order] if isinstance(values, torch.Tensor) else [values[row] for row in order]

    return {name: in_order(values) for name, values in batch.items()}
