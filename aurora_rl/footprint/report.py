"""The estimate as a table, and the check that a recipe makes before it loads anything."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from aurora_rl.config import DataArguments, ModelArguments
from aurora_rl.data.sample import AVSample
from aurora_rl.footprint.estimate import ROLLOUTS, TRAINING, Footprint, Part, estimate_footprint
from aurora_rl.footprint.flops import PEAK_TFLOPS, UTILISATION
from aurora_rl.footprint.launch import Launch
from aurora_rl.footprint.workload import Clips

logger = logging.getLogger(__name__)

#: What makes a part smaller, by how its name begins.
ADVICE = {
    "weights: language model": "load_in_4bit: true with use_peft: true, or ZeRO-3",
    "weights: ": "ZeRO-3",
    "weights gathered": "rollouts by vLLM (use_vllm: true)",
    "half-precision": "dtype: bfloat16 with DeepSpeed",
    "reference": "LoRA (use_peft: true), or beta: 0",
    "optimiser": "LoRA (use_peft: true), ZeRO-2 on more processes, optimiser offload",
    "gradients": "LoRA (use_peft: true), ZeRO-2 on more processes",
    "DeepSpeed": "a smaller reduce_bucket_size",
    "DDP": "LoRA (use_peft: true), ZeRO-2",
    "activations: decoder": "gradient_checkpointing: true, a smaller per_device_train_batch_size, a smaller max_pixels",
    "activations": "a smaller per_device_train_batch_size",
    "key-value": "a smaller per_device_train_batch_size or steps_per_generation, a smaller max_completion_length",
    "prefill": "a smaller per_device_train_batch_size or steps_per_generation",
    "vLLM": "a smaller vllm_gpu_memory_utilization, vllm_enable_sleep_mode: true, or vLLM on GPUs of its own",
}
NUM_ADVISED = 3


class DoesNotFitError(ValueError):
    """The estimate is above the memory there is."""


def check_footprint(
    model_args: ModelArguments, data_args: DataArguments, training_args: Any, samples: Sequence[AVSample]
) -> Footprint:
    """Log the estimate and stop where it cannot fit.

    Args:
        model_args: which model, and its limits.
        data_args: how clips are put to it.
        training_args: TRL's, of SFT or GRPO.
        samples: rows of the benchmark's table; of the media only one frame's header is read.

    Raises:
        DoesNotFitError: if the estimate is above the limit, unless `ignore_memory_estimate` is set.
    """
    limit = memory_limit(model_args, training_args.device)
    footprint = estimate_footprint(
        model_args,
        data_args,
        training_args,
        launch=Launch.of(training_args),
        clips=Clips.of(samples),
        device_memory=limit,
    )
    logger.info("%s", render(footprint, limit=limit, tflops=known_tflops(training_args.device)))
    if footprint.peak > limit and not model_args.ignore_memory_estimate:
        raise DoesNotFitError(complaint(footprint, limit))
    return footprint


def memory_limit(args: ModelArguments, device: torch.device) -> int:
    """Bytes that a process may take: as the arguments say, all of a GPU, or its share of the host's memory."""
    if args.memory_limit_gb is not None:
        return round(args.memory_limit_gb * 1e9)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return host // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def known_tflops(device: torch.device) -> float | None:
    """The data sheet's peak of a device, None where it is not listed."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def complaint(footprint: Footprint, limit: int) -> str:
    """Why a run stops: the largest parts and what makes each smaller."""
    largest = sorted(_fullest(footprint), key=lambda part: -part.num_bytes)[:NUM_ADVISED]
    lines = [f"  {part.name}, {_gb(part.num_bytes)}: {_advice(part.name)}" for part in largest]
    return "\n".join(
        [
            f"this run is estimated at {_gb(footprint.peak)} for each process, and there are {_gb(limit)}. "
            "Its largest parts, and what makes them smaller where it is not on already:",
            *lines,
            "`aurora-rl footprint` estimates without running. If you know better: memory_limit_gb says what there is, "
            "ignore_memory_estimate: true goes on regardless.",
        ]
    )


def render(
    footprint: Footprint, *, limit: int | None = None, tflops: float | None = None, utilisation: float = UTILISATION
) -> str:
    """The estimate as text."""
    work = footprint.work
    lines = [
        f"estimated memory of each process ({footprint.launch}):",
        f"  {work.rows} rows of {work.prompt_tokens:,} + {work.completion_tokens:,} tokens, "
        f"{work.frames} frames of {work.size[1]} x {work.size[0]}",
        *_rows(footprint.device),
        f"  {'peak':<46}{_gb(footprint.peak):>12}" + (f"  of {_gb(limit)}" if limit else ""),
    ]
    if footprint.host:
        lines += ["in host memory, for each process:", *_rows(footprint.host)]
    if footprint.disk:
        lines += ["on disk:", *_rows(footprint.disk)]
    teraflop = footprint.flops.total / 1e12
    amount = f"{teraflop:,.0f}" if teraflop >= 10 else f"{teraflop:.2g}"
    lines.append(f"estimated operations of a step, each process: {amount} TFLOP")
    if tflops:
        seconds = footprint.flops.seconds(tflops, utilisation)
        lines[-1] += f", at least {seconds:,.2g} s at {utilisation:.0%} of {tflops:g} TFLOP/s"
    return "\n".join(lines)


def _rows(parts: Iterable[Part]) -> list[str]:
    notes = {TRAINING: "  while training", ROLLOUTS: "  while sampling"}
    return [f"  {part.name:<46}{_gb(part.num_bytes):>12}{notes.get(part.when, '')}" for part in parts]


def _fullest(footprint: Footprint) -> list[Part]:
    """The parts that are there at the fullest moment."""
    sums = {w: sum(p.num_bytes for p in footprint.device if p.when == w) for w in (TRAINING, ROLLOUTS)}
    other = min(sums, key=lambda when: sums[when])
    return [part for part in footprint.device if part.when != other]


def _advice(name: str) -> str:
    return next(text for start, text in ADVICE.items() if name.startswith(start))


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:,.2f} MB"
