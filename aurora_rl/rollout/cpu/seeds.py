"""Seeded requests inside vLLM's CPU build, if one step is too short for all prompts.

When vLLM has read only a part of a prompt, it samples a token for it, discards it, and rewinds the request's generator.
A CUDA generator can be rewound; a CPU's raises "CPU Generator does not use offset".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner


def let_seeded_prompts_be_read_in_parts() -> None:
    """Make vLLM's runner for CPUs call `_sample_tokens`; a second call changes nothing."""
    setattr(CPUModelRunner, "sample_tokens", _sample_tokens)  # noqa: B010  # mypy forbids to assign a method


@torch.inference_mode()
def _sample_tokens(self: CPUModelRunner, *args: Any, **kwargs: Any) -> Any:
    """Sample as vLLM does, but draw nothing from the generators of requests whose token is discarded."""
    with _without_generators(self.input_batch.generators, self.discard_request_mask.np[: self.input_batch.num_reqs]):
        return GPUModelRunner.sample_tokens(self, *args, **kwargs)


@contextlib.contextmanager
def _without_generators(generators: dict[int, torch.Generator], is_discarded: np.ndarray) -> Iterator[None]:
    """Remove the generators of some rows while the block runs; the global generator draws their discarded tokens.

    Args:
        generators: generator of each row; the dictionary is changed in place, as the sampler reads this one.
        is_discarded: (rows,) bool, whether a row's token is discarded.
    """
    rows = np.flatnonzero(is_discarded).tolist()
    held_back = {row: generators.pop(row) for row in rows if row in generators}
    try:
        yield
    finally:
        generators.update(held_back)
