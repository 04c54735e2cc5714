"""Weights that DeepSpeed's ZeRO-3 has spread over the processes while they were loaded."""

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn
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
