"""GRPO's reference: a frozen copy of the policy before its first step.

TRL would rebuild a whole model from the name of the policy's class, which transformers does not know. If training
continues an adapter, TRL keeps its copy as a second adapter named "ref", which every run loads from the first adapter's
folder, and which is in no checkpoint.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.distributed.fsdp import is_fsdp_enabled
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import GRPOTrainer
from trl.models.utils import prepare_deepspeed, prepare_fsdp
from trl.trainer.callbacks import SyncRefModelCallback
from trl.trainer.utils import add_fused_lm_head

from aurora_rl.models.heads import head_configs, head_fields
from aurora_rl.models.loading import load_model
from aurora_rl.models.mllm import MLLMFamily
from aurora_rl.trainers.resumable import ResumableTrainer


def frozen_copy(model: PreTrainedModel, family: MLLMFamily) -> PreTrainedModel:
    """Return a copy of a model of some family, in eval mode and without gradients.

    Raises:
        ValueError: if only the first process has loaded weights (FSDP with fsdp_cpu_ram_efficient_loading).
    """
    if is_fsdp_enabled():  # transformers' name for FSDP with fsdp_cpu_ram_efficient_loading
        raise ValueError(
            "fsdp_cpu_ram_efficient_loading is true, but GRPO's reference model is a copy of the weights that each "
            "process has loaded: set it to false, as accelerate_configs/fsdp2.yaml does"
        )
    if is_deepspeed_zero3_enabled():  # no process holds whole weights that could be copied
        origin = model.config._name_or_path
        reference = load_model(
            origin, family=family, **head_fields(head_configs(model.config)), dtype=model.dtype
        ).model
    else:
        reference = copy.deepcopy(model)
    return reference.requires_grad_(False).eval()


#: TRL's name of the reference copy of an adapter whose training continues.
REFERENCE_ADAPTER = "ref"


@contextlib.contextmanager
def only_trained_adapters(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Keep the reference adapter out of what `save_pretrained` writes while the block runs.

    Its copies of the embeddings and the LM head would take as many bytes as the policy's. And if a checkpoint has
    adapters in sub-folders, transformers resumes only from these, so that the policy itself would not be resumed.
    """
    configs = model.peft_config if isinstance(model, PeftModel) else {}
    reference = configs.pop(REFERENCE_ADAPTER, None)
    try:
        yield
    finally:
        if reference is not None:
            configs[REFERENCE_ADAPTER] = reference


def load_policy_beside_reference(model: PreTrainedModel | PeftModel, checkpoint: str) -> None:
    """Load the trained adapter of an older checkpoint that holds the reference too (see `only_trained_adapters`)."""
    if isinstance(model, PeftModel) and Path(checkpoint, REFERENCE_ADAPTER).is_dir():
        model.load_adapter(checkpoint, model.active_adapter, is_trainable=True)


class PolicyCheckpoints(ResumableTrainer):
    """Seams of saving and loading: a checkpoint holds the policy alone, which is loaded beside its reference."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with only_trained_adapters(self.model):
            super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_policy_beside_reference(self.model if model is None else model, resume_from_checkpoint)


def install_reference(trainer: GRPOTrainer, reference: PreTrainedModel | None) -> None:
    """Prepare the reference, where there is one, as TRL's constructor prepares one that it has built."""
    if reference is None:
        return
    args, accelerator = trainer.args, trainer.accelerator
    add_fused_lm_head(reference, temperature=trainer.temperature, cast_lm_head_to_fp32=args.cast_lm_head_to_fp32)
    if trainer.is_deepspeed_enabled:
        trainer.ref_model = prepare_deepspeed(reference, accelerator)
    elif trainer.is_fsdp_enabled:
        trainer.ref_model = prepare_fsdp(reference, accelerator)
    else:
        trainer.ref_model = accelerator.prepare_model(reference, evaluation_mode=True)
    if args.sync_ref_model:
        trainer.add_callback(SyncRefModelCallback(ref_model=trainer.ref_model, accelerator=accelerator))
