"""vLLM as GRPO's sampler: it gets the weights of each step once, and every request carries a seed of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from trl.extras.profiling import profiling_context

from aurora_rl.models.loading import LoadedModel
from aurora_rl.models.mllm import EncodedPrompt

if TYPE_CHECKING:
    from aurora_rl.rollout.engine import AuroraVLLMGeneration, Rollouts
    from aurora_rl.trainers.grpo import AuroraGRPOTrainer


class VLLMSampler:
    """Samples completions for a trainer.

    Args:
        trainer: whose policy is sampled from.
        engine: what `vllm_engine` makes of its options.
    """

    def __init__(self, trainer: AuroraGRPOTrainer, engine: AuroraVLLMGeneration) -> None:
        self.trainer = trainer
        self.engine = engine
        self._synced_step = -1
        self._turns: dict[bool, tuple[int, int]] = {}

    def generate(self, prompts: Sequence[EncodedPrompt], *, num_generations: int) -> Rollouts:
        """One completion for each row of this process; a prompt's `num_generations` copies stand side by side."""
        trainer = self.trainer
        if trainer.state.global_step != self._synced_step:
            with profiling_context(trainer, "sync_weights"):
                self.engine.sync_weights()
            self._synced_step = trainer.state.global_step
        return self.engine.generate_rows(
            prompts,
            seeds=self.request_seeds(len(prompts)),
            num_generations=num_generations,
            profiler=profiling_context(trainer, "vLLM.generate"),
        )

    def request_seeds(self, num_rows: int) -> list[int]:
        """A seed for each row, by the run's seed, the step and the row's place in it, so that resuming is exact."""
        trainer = self.trainer
        step, is_eval = trainer.state.global_step, not trainer.model.training
        last_step, turn = self._turns.get(is_eval, (-1, 0))
        turn = turn + 1 if last_step == step else 0
        self._turns[is_eval] = (step, turn)
        first = trainer.accelerator.process_index * num_rows
        keys = [(trainer.args.seed, step, is_eval, turn, first + row) for row in range(num_rows)]
        return [int(np.random.SeedSequence(key).generate_state(1)[0]) for key in keys]


def vllm_engine(trainer: AuroraGRPOTrainer) -> AuroraVLLMGeneration:
    """What TRL's constructor makes of its `vllm_` options, with the engine for frames and sound."""
    from aurora_rl.rollout.engine import AuroraVLLMGeneration  # vLLM is an extra

    args = trainer.args
    return AuroraVLLMGeneration(
        LoadedModel(trainer.model, trainer.encode.processor, trainer.encode.family, trainer.seg_token_id),
        engine_kwargs=args.engine_kwargs,
        request_timeout_s=args.vllm_request_timeout_s,
        accelerator=trainer.accelerator,
        processing_class=trainer.processing_class,
        mode=args.vllm_mode,
        structured_outputs_regex=args.vllm_structured_outputs_regex,
        server_base_url=args.vllm_server_base_url,
        server_host=args.vllm_server_host,
        server_port=args.vllm_server_port,
        server_timeout=args.vllm_server_timeout,
        group_port=args.vllm_group_port,
        tensor_parallel_size=args.vllm_tensor_parallel_size,
        gpu_memory_utilization=args.vllm_gpu_memory_utilization,
        max_model_length=args.vllm_max_model_length,
        max_num_seqs=args.per_device_train_batch_size * args.vllm_tensor_parallel_size * args.steps_per_generation,
        enable_sleep_mode=args.vllm_enable_sleep_mode,
        repetition_penalty=trainer.repetition_penalty,
        temperature=trainer.temperature,
        top_p=trainer.top_p,
        top_k=trainer.top_k,
        min_p=trainer.min_p,
        max_completion_length=trainer.max_completion_length,
        logprobs=0,
        generation_kwargs=args.generation_kwargs,
    )
