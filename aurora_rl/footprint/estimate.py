"""The memory of device and host, and the disk space, that a recipe's arguments need."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from aurora_rl.assembly.arguments import DataArguments, ModelArguments, TargetArguments
from aurora_rl.footprint.activations import estimate_activations, estimate_sampling
from aurora_rl.footprint.flops import Rollouts, StepFlops, estimate_flops
from aurora_rl.footprint.launch import Launch
from aurora_rl.footprint.parameters import MetaModel, build_meta_model, total
from aurora_rl.footprint.parts import (
    ALWAYS,
    LAYERS,
    LM_HEAD,
    LOADING,
    MASKS,
    SAMPLING,
    SCORING,
    TRAINING,
    Part,
    fullest,
    sum_of,
)
from aurora_rl.footprint.shared_prompts import shares_prompts, without_dropout
from aurora_rl.footprint.storage import disk_parts, states_of, tower_output_parts
from aurora_rl.footprint.workload import Clips, Workload, build_workload, clip_pass
from aurora_rl.models.loading import family_that_reads
from aurora_rl.tasks.base import load_task

#: Elements that ZeRO-3 prefetches for the next layers (DeepSpeed's `stage3_prefetch_bucket_size`).
PREFETCHED = 50_000_000


@dataclasses.dataclass(frozen=True)
class Footprint:
    """An estimate; it excludes fragments of the allocator, the device's context and Python itself.

    Attributes:
        launch: how the run is spread over processes.
        work: sizes of one pass of one process.
        device: parts in the memory of a process's device.
        host: parts in host memory, for each process, if the device is not the CPU.
        disk: parts on disk, for the whole run.
        flops: operations of one optimiser step of one process.
    """

    launch: Launch
    work: Workload
    device: tuple[Part, ...]
    host: tuple[Part, ...]
    disk: tuple[Part, ...]
    flops: StepFlops

    @property
    def peak(self) -> int:
        """Peak of the device memory, in bytes."""
        return sum_of(fullest(self.device))

    @property
    def host_peak(self) -> int:
        """Peak of the host memory, in bytes."""
        return sum_of(fullest(self.host))


def estimate_footprint(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: Any,
    *,
    launch: Launch,
    clips: Clips,
    work: Workload | None = None,
    device_memory: int | None = None,
    teacher: str | None = None,
    meta: MetaModel | None = None,
) -> Footprint:
    """Estimate from arguments and the model's config; no weights are read and nothing is allocated.

    Args:
        model_args: arguments of the model.
        data_args: arguments that say how clips are given to the model.
        training_args: `AuroraSFTConfig` or `AuroraGRPOConfig`.
        launch: how the run is spread over processes.
        clips: sizes of the clips.
        work: sizes of one pass, if they are known better than from `clips` and the arguments.
        device_memory: memory of the device in bytes, of which vLLM takes its share if it runs beside the trainer.
        teacher: hub name or directory of the teacher, from `live_teacher`.
        meta: the model, if it has been built already.
    """
    half = torch.bfloat16 if training_args.bf16 else torch.float16 if training_args.fp16 else None
    meta = meta or build_meta_model(model_args, launch, half=half, needs=load_task(data_args.task).head)
    teacher_meta = None
    if teacher is not None:  # whole on every process, in the student's dtype (`assembly.teacher.assemble_teacher`)
        as_read = ModelArguments(model=teacher, dtype=model_args.dtype)
        teacher_meta = build_meta_model(as_read, Launch(), family=family_that_reads(teacher, model_args.family))
    work = work or build_workload(meta.family, meta.base.config, data_args, training_args, clips)
    meta = without_dropout(meta, training_args)
    work = dataclasses.replace(work, shares_prompts=shares_prompts(meta, model_args, training_args))
    checkpointing = bool(training_args.gradient_checkpointing)
    activations = estimate_activations(meta, work, half=half, checkpointing=checkpointing, is_gpu=launch.is_gpu)
    parts = [
        *_weight_parts(meta, launch, half),
        *_reference_parts(meta, training_args, launch),
        *([Part("teacher", total(teacher_meta.parts).num_bytes)] if teacher_meta else []),
        *_optimiser_parts(meta, launch, training_args.optim),
        *_gradient_parts(meta, launch),
        Part("activations: decoder", activations.decoder, TRAINING),
        Part("activations: towers", activations.towers, TRAINING),
        Part("activations: mask decoder and mask loss", activations.masks, MASKS),
        Part("activations: LM head", activations.lm_head, LM_HEAD),
        Part("activations: one layer", activations.layer, LAYERS),
        *_rollout_parts(meta, work, training_args, launch, half, device_memory),
    ]
    rollouts = Rollouts.of(training_args, launch, head=work.head) if work.generated_rows else None
    offloaded = [part for part in parts if launch.is_gpu and _is_offloaded(part, launch)]
    masks_on_device, masks_on_host = _rollout_masks(work, launch)
    device = [*(part for part in parts if part not in offloaded), *masks_on_device]
    loading = loading_parts(meta, launch, beta=getattr(training_args, "beta", 0.0), teacher=teacher_meta)
    host = [*loading, *sorted(offloaded, key=lambda part: part.name), *masks_on_host]
    return Footprint(
        launch=launch,
        work=work,
        device=tuple(part for part in device if part.num_bytes),
        host=tuple(part for part in host if part.num_bytes),
        disk=(
            *disk_parts(meta, training_args, launch, clips, head=work.head),
            *_kept_towers(meta, model_args, data_args, clips, half),
        ),
        flops=estimate_flops(
            meta,
            work,
            checkpointing=checkpointing,
            is_gpu=launch.is_gpu,
            rollouts=rollouts,
            teacher=teacher_meta,
        ),
    )


def _kept_towers(
    meta: MetaModel, model_args: ModelArguments, data_args: DataArguments, clips: Clips, half: torch.dtype | None
) -> list[Part]:
    if model_args.tower_cache is None:
        return []
    a_clip = clip_pass(meta.family, meta.base.config, data_args, clips)
    return tower_output_parts(meta, a_clip, clips, half or meta.base.get_input_embeddings().weight.dtype)


def live_teacher(target_args: TargetArguments, training_args: Any) -> str | None:
    """Return the teacher that supervised fine-tuning keeps beside the student; None if there is none."""
    is_live = target_args.teacher_features is None and training_args.distill_weight != 0
    return target_args.teacher if is_live else None


def _is_offloaded(part: Part, launch: Launch) -> bool:
    """Return whether the launch offloads a part from the GPU to host memory."""
    offloads = {
        "optimiser state": launch.offloads_optimizer,
        "gradients": launch.offloads_optimizer and launch.zero_stage >= 2,
        "weights: ": launch.offloads_parameters,
    }
    return any(is_off and part.name.startswith(name) for name, is_off in offloads.items())


def _shard(num_bytes: float, launch: Launch, stage: int) -> int:
    """Divide bytes over the processes, if ZeRO does so from this stage on (Rajbhandari et al. 2020, figure 1)."""
    return round(num_bytes / launch.num_processes if launch.zero_stage >= stage else num_bytes)


def _weight_parts(meta: MetaModel, launch: Launch, half: torch.dtype | None) -> list[Part]:
    parts = [Part(f"weights: {part.name}", _shard(part.num_bytes, launch, 3)) for part in meta.parts]
    matrices = [p for p in meta.model.parameters() if p.requires_grad and p.ndim > 1]
    if launch.zero_stage == 3 and launch.num_processes > 1:
        layer = sum(p.numel() * p.element_size() for p in meta.base.get_decoder().layers[0].parameters())
        embeddings = meta.base.get_input_embeddings().weight
        gathered = max(layer, embeddings.numel() * embeddings.element_size())
        gathered = min(gathered + PREFETCHED * embeddings.element_size(), total(meta.parts).num_bytes)
        parts.append(Part("weights gathered for one layer", gathered))
    if half is not None and not launch.is_deepspeed:  # autocast keeps its casts until the pass ends
        cast = sum(p.numel() * half.itemsize for p in matrices if p.dtype == torch.float32)
        parts.append(Part("half-precision copies of float32 weights", cast, TRAINING))
    return parts


def _reference_parts(meta: MetaModel, args: Any, launch: Launch) -> list[Part]:
    """Estimate KL's reference: a copy of the model or of a loaded adapter; a new adapter is only switched off."""
    if not getattr(args, "beta", 0.0):
        return []
    if meta.model is meta.base:
        return [Part("reference model", _shard(total(meta.parts).num_bytes, launch, 3))]
    return [Part("reference adapter", _shard(meta.trained.trained_bytes, launch, 3) * meta.has_loaded_adapter)]


def loading_parts(
    meta: MetaModel, launch: Launch, *, beta: float = 0.0, teacher: MetaModel | None = None
) -> list[Part]:
    """Estimate the host memory while weights are loaded: each process reads all of them, in the dtype that is set.

    GRPO's reference is copied there too, and a teacher is loaded after it. Weights of 4 bits go to the GPU directly.
    """
    if not launch.is_gpu or meta.is_quantized:
        return []
    loaded = meta.loaded.num_bytes + (total(teacher.parts).num_bytes if teacher else 0)
    if beta and meta.model is meta.base:
        loaded += meta.loaded.num_bytes
    elif beta and meta.has_loaded_adapter:
        loaded += meta.loaded.trained_bytes
    return [Part("weights on their way to the GPU", loaded, LOADING)]


def _optimiser_parts(meta: MetaModel, launch: Launch, optim: str) -> list[Part]:
    """Estimate AdamW's moments in the weights' dtype; DeepSpeed keeps them and a copy of the weights in float32."""
    states, trained = states_of(optim), meta.trained
    if launch.is_deepspeed:
        num_bytes: int = trained.trained * (1 + states) * torch.float32.itemsize
    else:  # one float32 a tensor counts the steps
        num_bytes = states * trained.trained_bytes + 4 * trained.trained_tensors * bool(states)
    return [Part("optimiser state", _shard(num_bytes, launch, 1))]


def _gradient_parts(meta: MetaModel, launch: Launch) -> list[Part]:
    trained = meta.trained
    # DeepSpeed's optimiser on the host reads float32.
    num_bytes = trained.trained * 4 if launch.is_deepspeed and launch.offloads_optimizer else trained.trained_bytes
    parts = [Part("gradients", _shard(num_bytes, launch, 2), TRAINING)]
    if launch.is_deepspeed:
        itemsize = trained.trained_bytes / max(1, trained.trained)
        parts.append(Part("DeepSpeed's reduce bucket", round(launch.reduce_bucket_size * itemsize), TRAINING))
        if launch.zero_stage >= 2 and trained.largest_trained > launch.reduce_bucket_size:  # it is reduced alone
            parts.append(Part("one gradient above the bucket", round(trained.largest_trained * itemsize), TRAINING))
    elif launch.num_processes > 1 and launch.zero_stage == 0:
        parts.append(Part("DDP's buckets", trained.trained_bytes))
    return parts


def _rollout_parts(
    meta: MetaModel, work: Workload, args: Any, launch: Launch, half: torch.dtype | None, device_memory: int | None
) -> list[Part]:
    if not work.generated_rows:
        return []
    if not args.use_vllm:
        cache, prefill = estimate_sampling(meta, work, half=half)
        # TRL gathers all sharded weights to sample, unless `ds3_gather_for_generation` is off.
        gathered = total(meta.parts).num_bytes if launch.zero_stage == 3 and args.ds3_gather_for_generation else 0
        sizes = {"weights gathered for sampling": gathered, "key-value cache": cache, "prefill": prefill}
        return [Part(name, num_bytes, SAMPLING) for name, num_bytes in sizes.items()]
    if args.vllm_mode != "colocate":
        return []
    when = SAMPLING if args.vllm_enable_sleep_mode else ALWAYS
    return engine_parts(meta, args, device_memory, when=when, num_shards=args.vllm_tensor_parallel_size)


def engine_parts(
    meta: MetaModel, args: Any, device_memory: int | None, *, when: str = ALWAYS, num_shards: int = 1
) -> list[Part]:
    """Estimate vLLM beside the model: weights of its own, and keys and values in the rest of its share of the device.

    Args:
        meta: the model.
        args: arguments with `vllm_gpu_memory_utilization` and `engine_kwargs`.
        device_memory: memory of the device in bytes, if it is known.
        when: when vLLM is awake.
        num_shards: number of processes that share an engine's weights.
    """
    weights = total(meta.parts).num_bytes // num_shards
    cache = int(args.engine_kwargs.get("kv_cache_memory_bytes") or 0)
    if not cache and device_memory:
        cache = max(0, round(args.vllm_gpu_memory_utilization * device_memory) - weights)
    return [Part("vLLM: its own weights", weights, when), Part("vLLM: its key-value cache", cache, when)]


def _rollout_masks(work: Workload, launch: Launch) -> tuple[list[Part], list[Part]]:
    """Estimate the masks of all rollouts at the frames' own size, on the device and on the host.

    Their float32 logits stay on the device, and the host has booleans for the rewards; probabilities are computed for
    one completion at a time, if a reward reads them.
    """
    name, pixels = "masks of the rollouts", work.generated_rows * work.frames * work.size[0] * work.size[1]
    if not work.has_masks:
        return [], []
    logits, booleans, both = (Part(name, size * pixels, SCORING) for size in (4, 1, 5))
    return ([logits], [booleans]) if launch.is_gpu else ([both], [])
