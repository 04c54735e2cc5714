"""Weights that DeepSpeed's ZeRO-3 has spread over the processes while they were loaded."""

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn
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


def gather_at_once(model: nn.Module, part: type[nn.Module]) -> None:
    """Under ZeRO-3, gather the weights of modules of class `part` when they are entered, not one by one inside.

    For parts that work through chunks: how many there are depends on a process's own clips, and each module that is
    called on one process only would be waited for on the others.
    """
    if is_deepspeed_zero3_enabled():
        from deepspeed.utils import set_z3_leaf_modules

        set_z3_leaf_modules(model, [part])
