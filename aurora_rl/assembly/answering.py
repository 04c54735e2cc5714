"""Who writes the answers of a script that asks a model: the model itself, or vLLM beside it in each process.

Evaluation and the scripts of `data_prep/` that ask about many rows build it here. The model stays beside vLLM: the
task's head reads its states, in a pass over prompt and completion, and the engine gets its weights from it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from aurora_rl.assembly.sampling import SamplingArguments
from aurora_rl.inference.predictor import Predictor, SeededSampling
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.loading import LoadedModel

if TYPE_CHECKING:
    from aurora_rl.rollout.engine import AuroraVLLMGeneration


class VLLMPredictor(Predictor):
    """A predictor whose completions vLLM samples; each request has the seed that a row's own draw has.

    Args:
        engine: vLLM in this process, with the model's weights; its temperature is set for each call.
        *args, **options: those of `Predictor`.
    """

    def __init__(self, engine: AuroraVLLMGeneration, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.engine = engine

    def generate(self, rows: Sequence[EncodedSample], noise: SeededSampling | None = None) -> list[torch.Tensor]:
        """Generate the ids of each row's completion, see `Predictor.generate`.

        Raises:
            ValueError: if vLLM has no room for the longest prompt with a completion, which it would cut.
        """
        self._check_room(max(len(row.prompt.prompt_ids) for row in rows))
        self.engine.temperature = 0.0 if noise is None else noise.temperature
        seeds = [0] * len(rows) if noise is None else [each.initial_seed() % 2**31 for each in noise.generators]
        sampled = self.engine.generate_rows(
            [row.prompt for row in rows], seeds=seeds, num_generations=1, profiler=contextlib.nullcontext()
        )
        return [torch.tensor(ids, device=self.model.device) for ids in sampled.completion_ids]

    def _check_room(self, prompt_length: int) -> None:
        room, needed = self.engine.max_model_length, prompt_length + self.max_completion_length
        if room is not None and needed > room:
            raise ValueError(
                f"vllm_max_model_length is {room}, but a prompt of {prompt_length} tokens with its completion of "
                f"{self.max_completion_length} may have {needed}: set it to that at least"
            )


def start_engine(args: SamplingArguments, loaded: LoadedModel) -> AuroraVLLMGeneration | None:
    """Start vLLM in this process with the model's weights; None where the model samples by itself.

    Args:
        args: the options.
        loaded: the model on its device.

    Raises:
        ValueError: if vLLM does not compute what the family's model computes, or an adapter cannot be merged for it.
    """
    if not args.use_vllm:
        return None
    from accelerate import Accelerator

    from aurora_rl.rollout.engine import AuroraVLLMGeneration  # vLLM is an extra

    engine = AuroraVLLMGeneration(
        loaded,
        engine_kwargs=args.engine_kwargs,
        accelerator=Accelerator(cpu=args.use_cpu),
        processing_class=loaded.processor,
        mode="colocate",
        max_model_length=args.vllm_max_model_length,
        max_completion_length=args.max_completion_length,
        max_num_seqs=args.batch_size,
        gpu_memory_utilization=args.vllm_gpu_memory_utilization,
    )
    engine.sync_weights()
    return engine


def assemble_predictor(
    args: SamplingArguments,
    loaded: LoadedModel,
    encode: SampleEncoder,
    engine: AuroraVLLMGeneration | None,
    *,
    append_seg: bool = False,
) -> Predictor:
    """Build the predictor that answers.

    Args:
        args: the options.
        loaded: the model on its device.
        encode: encoder of the rows.
        engine: result of `start_engine`, which several predictors may share.
        append_seg: whether completions without the head's token are closed by the task's `closing`, see `Predictor`.
    """
    length, size = args.max_completion_length, args.batch_size
    options: dict[str, Any] = {"max_completion_length": length, "batch_size": size, "append_seg": append_seg}
    if engine is None:
        return Predictor(loaded.model, encode, **options)
    return VLLMPredictor(engine, loaded.model, encode, **options)
