"""GRPO's reference: a frozen copy of the policy before its first step.

TRL would rebuild it from the name of the policy's class, which transformers does not know.
"""

from __future__ import annotations

import copy

from transformers import PreTrainedModel
from transformers.distributed.fsdp import is_fsdp_enabled
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import GRPOTrainer
from trl.models.utils import prepare_deepspeed, prepare_fsdp
from trl.trainer.callbacks import SyncRefModelCallback
from trl.trainer.utils import add_fused_lm_head

from aurora_rl.models.loading import load_model


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it is now, in eval mode and without gradients.

    Raises:
        ValueError: under FSDP, if the first process alone has loaded weights.
    """
    if is_fsdp_enabled():  # so does transformers call FSDP where the first process alone has loaded weights
        raise ValueError(
            "fsdp_cpu_ram_efficient_loading is true, but GRPO's reference model is a copy of the weights that each "
            "process has loaded: set it to false, as accelerate_configs/fsdp2.yaml does"
        )
    if is_deepspeed_zero3_enabled():  # the weights are spread over the processes: there is nothing whole to copy
        origin = model.config._name_or_path
        reference = load_model(origin, segmenter=model.config.segmenter, dtype=model.dtype).model
    else:
        reference = copy.deepcopy(model)
    return reference.requires_grad_(False).eval()


def install_reference(trainer: GRPOTrainer, reference: PreTrainedModel) -> None:
    """What TRL's constructor does with a reference that it has built itself."""
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
