"""Seeded requests inside vLLM's CPU build, where a step is too short for all prompts.

vLLM samples a token for a prompt of which it has read a part only, throws it away, and rewinds the request's generator
by as much: a CUDA generator can be rewound, a CPU's raises "CPU Generator does not use offset".
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
    """Make vLLM's runner for CPUs sample as below; a second call changes nothing."""
    setattr(CPUModelRunner, "sample_tokens", _sample_tokens)  # noqa: B010  # mypy forbids to assign a method


@torch.inference_mode()
def _sample_tokens(self: CPUModelRunner, *args: Any, **kwargs: Any) -> Any:
    """As vLLM's, but requests whose token is thrown away draw nothing from their generators."""
    with _without_generators(self.input_batch.generators, self.discard_request_mask.np[: self.input_batch.num_reqs]):
        return GPUModelRunner.sample_tokens(self, *args, **kwargs)


@contextlib.contextmanager
def _without_generators(generators: dict[int, torch.Generator], is_thrown_away: np.ndarray) -> Iterator[None]:
    """Hold back the generators of some rows; theirs are drawn by the global one meanwhile, which nobody reads.

    Args:
        generators: by row, changed in place: the sampler reads this very dictionary.
        is_thrown_away: (rows,) bool.
    """
    rows = np.flatnonzero(is_thrown_away).tolist()
    held_back = {row: generators.pop(row) for row in rows if row in generators}
    try:
        yield
    finally:
        generators.update(held_back)
