"""The estimate for answering without training: evaluation and the collection of mistakes, which generate by batches."""

from __future__ import annotations

import dataclasses

from aurora_rl.assembly.arguments import DataArguments, ModelArguments
from aurora_rl.assembly.sampling import SamplingArguments
from aurora_rl.footprint.activations import estimate_mask_decoding, estimate_pass, estimate_sampling
from aurora_rl.footprint.estimate import Footprint, engine_parts, loading_parts
from aurora_rl.footprint.flops import Rollouts, estimate_flops
from aurora_rl.footprint.launch import Launch
from aurora_rl.footprint.parameters import build_meta_model
from aurora_rl.footprint.parts import SAMPLING, SCORING, Part
from aurora_rl.footprint.storage import embedding_parts
from aurora_rl.footprint.workload import Clips, build_workload
from aurora_rl.tasks.base import load_task


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Arguments of `build_workload` for one batch of answers, where each row has a clip of its own."""

    per_device_train_batch_size: int
    max_completion_length: int
    environment_factory: str | None
    num_generations: int = 1
    steps_per_generation: int = 1
    gradient_accumulation_steps: int = 1


def estimate_answering(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: SamplingArguments,
    *,
    launch: Launch,
    clips: Clips,
    device_memory: int | None = None,
) -> Footprint:
    """Estimate `inference.Predictor` from arguments and the model's config; nothing is loaded.

    Args:
        model_args: arguments of the model. Under an adapter, the modules that it holds whole count twice.
        data_args: arguments that say how clips are given to the model.
        args: how completions are generated, and by whom.
        launch: how the run is spread over processes; each holds the whole model.
        clips: sizes of the clips.
        device_memory: memory of the device in bytes, of which vLLM takes its share if it samples.
    """
    meta = build_meta_model(model_args, launch, needs=load_task(data_args.task).head)
    batch = _Batch(args.batch_size, args.max_completion_length, getattr(args, "environment_factory", None))
    work = build_workload(meta.family, meta.base.config, data_args, batch, clips)
    if args.use_vllm:
        sampling = engine_parts(meta, args, device_memory)
    else:
        cache, prefill = estimate_sampling(meta, work, half=None)
        sampling = [Part("key-value cache", cache, SAMPLING), Part("prefill", prefill, SAMPLING)]
    second_pass = estimate_pass(meta, work, rows=work.rows, length=work.length) if work.head else 0
    device = [
        *(Part(f"weights: {part.name}", part.num_bytes) for part in meta.parts),
        *sampling,
        Part("pass for the masks", second_pass, SCORING),
        Part("masks of the answers", estimate_mask_decoding(meta, work) if work.has_masks else 0, SCORING),
    ]
    # Each token is sampled, and passes once more for the head.
    scored = int(work.head is not None)
    rollouts = Rollouts(samples_here=True, num_scored=scored, num_iterations=1, by_engine=args.use_vllm)
    flops = estimate_flops(meta, work, checkpointing=False, is_gpu=launch.is_gpu, rollouts=rollouts)
    return Footprint(
        launch=launch,
        work=work,
        device=tuple(part for part in device if part.num_bytes),
        host=tuple(loading_parts(meta, launch)),
        disk=tuple(embedding_parts(meta, clips, work.head)),
        flops=dataclasses.replace(flops, training=0.0, recomputing=0.0),
    )
