"""vLLM as the sampler of scripts that ask about many rows: each process has an engine of its own beside its model.

The model stays: masks are decoded by it, and the engine gets its weights from it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from aurora_rl.inference.predictor import Predictor, SeededSampling
from aurora_rl.models.encoding import EncodedSample
from aurora_rl.models.loading import LoadedModel

if TYPE_CHECKING:
    from aurora_rl.rollout.engine import AuroraVLLMGeneration


class VLLMPredictor(Predictor):
    """A predictor whose completions vLLM samples; each request has the seed that a row's own draw has.

    Args:
        engine: vLLM in this process, at the temperature of the draws, with the model's weights.
        *args, **options: those of `Predictor`.
    """

    def __init__(self, engine: AuroraVLLMGeneration, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.engine = engine

    def generate(self, rows: Sequence[EncodedSample], noise: SeededSampling | None = None) -> list[torch.Tensor]:
        """Generate the ids of each row's completion, see `Predictor.generate`."""
        drawn = [0] * len(rows) if noise is None else [each.initial_seed() % 2**31 for each in noise.generators]
        sampled = self.engine.generate_rows(
            [row.prompt for row in rows], seeds=drawn, num_generations=1, profiler=contextlib.nullcontext()
        )
        return [torch.tensor(ids, device=self.model.device) for ids in sampled.completion_ids]


def start_engine(
    loaded: LoadedModel, *, temperature: float, max_completion_length: int, batch_size: int, memory: float
) -> AuroraVLLMGeneration:
    """Start vLLM in this process, with the model's weights.

    Args:
        loaded: the model on its device.
        temperature: temperature of every completion; 0 decodes greedily.
        max_completion_length: largest number of tokens of a completion.
        batch_size: number of sequences that are generated at once.
        memory: share of the device's memory that vLLM takes, the model's own weights not counted.
    """
    from accelerate import Accelerator

    from aurora_rl.rollout.engine import AuroraVLLMGeneration  # vLLM is an extra

    engine = AuroraVLLMGeneration(
        loaded,
        accelerator=Accelerator(cpu=loaded.model.device.type == "cpu"),
        processing_class=loaded.processor,
        mode="colocate",
        temperature=temperature,
        max_completion_length=max_completion_length,
        max_num_seqs=batch_size,
        gpu_memory_utilization=memory,
    )
    engine.sync_weights()
    return engine
