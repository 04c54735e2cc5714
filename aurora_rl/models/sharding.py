"""Weights that DeepSpeed's ZeRO-3 has spread over the processes while they were loaded."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled


@contextlib.contextmanager
def gathered(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Hold whole parameters on every process; what is written to them is kept, as the first process wrote it.

    Does nothing where parameters are whole anyway.
    """
    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed  # only here: importing it decides on an accelerator

    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0):
        yield


@contextlib.contextmanager
def loading_whole() -> Iterator[None]:
    """Models loaded in here stay whole on every process: frozen ones that no engine will ever wrap."""
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
    """Under ZeRO-3 with bf16, compute the frequencies of rotary positions anew, in float32.

    `deepspeed.zero.Init` turns whatever a module computes while it is built into bf16. A frequency that is off by
    0.2 % turns position 2,000 by whole radians: the model would see other positions than everywhere else.
    """
    if not is_deepspeed_zero3_enabled():
        return
    for module in model.modules():
        if hasattr(module, "original_inv_freq"):
            module.float()  # it owns buffers alone
            model._init_weights(module)


def gather_at_once(model: nn.Module, part: type[nn.Module]) -> None:
    """Under ZeRO-3, gather the weights of modules of class `part` when they are entered, not one by one inside.

    For parts that work through chunks: how many there are depends on a process's own clips, and each module that is
    called on one process only would be waited for on the others.
    """
    if is_deepspeed_zero3_enabled():
        from deepspeed.utils import set_z3_leaf_modules

        set_z3_leaf_modules(model, [part])
