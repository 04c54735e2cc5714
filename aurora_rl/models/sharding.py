"""Weights that are sharded over the processes: by DeepSpeed's ZeRO-3 while they were loaded, or by FSDP."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled


@contextlib.contextmanager
def gathered(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gather whole parameters on every process; changes by the first process are kept.

    Without ZeRO-3 it does nothing, since parameters are whole.
    """
    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed  # only here: importing it decides on an accelerator

    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0):
        yield


def true_on_all(fact: bool) -> bool:
    """Tell whether something is true on each process; all of them must ask at the same place."""
    return bool(gather(torch.tensor([fact], device=PartialState().device)).all())


@contextlib.contextmanager
def loading_whole() -> Iterator[None]:
    """Load models whole on every process, for frozen models that no engine will ever wrap."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    config = hf_deepspeed._hf_deepspeed_config_weak_ref()
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed.set_hf_deepspeed_config(config)


@torch.no_grad()
def restore_rotary_frequencies(model: PreTrainedModel) -> None:
    """Compute the frequencies of rotary positions again in float32, under ZeRO-3 with bf16.

    `deepspeed.zero.Init` casts all tensors that a module computes while it is built to bf16. A frequency that is off by
    0.2 % rotates position 2,000 by whole radians, so the model would see wrong positions.
    """
    if not is_deepspeed_zero3_enabled():
        return
    for module in model.modules():
        if any(name.endswith("original_inv_freq") for name, _ in module.named_buffers(recurse=False)):
            module.float()  # it owns buffers alone
            model._init_weights(module)


def gather_at_once(model: nn.Module, part: type[nn.Module]) -> None:
    """Gather all weights of a module when it is entered, not one by one inside it, under ZeRO-3.

    These are the modules of class `part`, or of a class derived from it. It is for parts that work in chunks: their
    number depends on a process's own clips, and all processes would wait for a module that only one of them calls.
    """
    if is_deepspeed_zero3_enabled():
        from deepspeed.utils import set_z3_leaf_modules

        if classes := {type(module) for module in model.modules() if isinstance(module, part)}:
            set_z3_leaf_modules(model, list(classes))  # by the class itself, not by those that it derives from


@contextlib.contextmanager
def keep_together(model: nn.Module, *, is_fsdp: bool) -> Iterator[None]:
    """Make `generate` run on each process as many steps as the longest completion of all needs, under FSDP.

    Every step gathers weights, for which all processes must meet. transformers recognises ZeRO-3 and FSDP 1, but FSDP 2
    only where it has sharded the model itself, and not where accelerate has.

    Args:
        model: the model whose `generate` is called.
        is_fsdp: whether FSDP has sharded it; otherwise nothing is done.
    """
    wrapped: Any = model
    inner = wrapped.get_base_model() if isinstance(model, PeftModel) else wrapped  # whose `generate` PEFT's own calls
    if not is_fsdp or getattr(inner, "_is_fsdp_managed_module", False):
        yield
        return
    inner._is_fsdp_managed_module = True
    try:
        yield
    finally:
        del inner._is_fsdp_managed_module
