"""The vLLM engine for frames and sound, built from TRL's `vllm_` options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trl import GRPOTrainer

from aurora_rl.models.loading import LoadedModel

if TYPE_CHECKING:
    from aurora_rl.rollout.engine import AuroraVLLMGeneration


def vllm_engine(trainer: GRPOTrainer, loaded: LoadedModel) -> AuroraVLLMGeneration:
    """Build the engine from the `vllm_` options, as TRL's constructor does for text and images."""
    from aurora_rl.rollout.engine import AuroraVLLMGeneration  # vLLM is an extra

    args = trainer.args
    return AuroraVLLMGeneration(
        loaded,
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
