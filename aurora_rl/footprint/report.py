"""The estimate as a table, and the check that a recipe makes before it loads anything."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from aurora_rl.assembly.arguments import DataArguments, ModelArguments, TargetArguments
from aurora_rl.data.sample import AVSample
from aurora_rl.footprint.estimate import Footprint, estimate_footprint, live_teacher
from aurora_rl.footprint.flops import PEAK_TFLOPS, UTILISATION, StepFlops, least_seconds
from aurora_rl.footprint.launch import Launch
from aurora_rl.footprint.limits import Limits, device_memory, host_memory
from aurora_rl.footprint.parts import ALWAYS, Part, fullest
from aurora_rl.footprint.workload import Clips

logger = logging.getLogger(__name__)

#: Options that make a part smaller, by the start of its name.
ADVICE = {
    "weights on their way": "fewer processes on a machine, dtype: bfloat16 where weights are stored in float32",
    "weights: language model": "load_in_4bit: true with use_peft: true, or ZeRO-3",
    "weights: ": "ZeRO-3",
    "weights gathered": "rollouts by vLLM (use_vllm: true)",
    "half-precision": "dtype: bfloat16 with DeepSpeed",
    "reference": "LoRA (use_peft: true), or beta: 0",
    "teacher": "teacher_features: FILE, where the teacher's features are kept",
    "optimiser": "LoRA (use_peft: true), ZeRO-2 on more processes, optimiser offload",
    "gradients": "LoRA (use_peft: true), ZeRO-2 on more processes",
    "DeepSpeed": "a smaller reduce_bucket_size",
    "one gradient": "lora_modules_to_save: [seg_head], ZeRO-3",
    "DDP": "LoRA (use_peft: true), ZeRO-2",
    "activations: decoder": "gradient_checkpointing: true, a smaller per_device_train_batch_size, a smaller max_pixels",
    "activations": "a smaller per_device_train_batch_size",
    "key-value": "a smaller per_device_train_batch_size or steps_per_generation, a smaller max_completion_length",
    "prefill": "a smaller per_device_train_batch_size or steps_per_generation",
    "pass for the masks": "a smaller batch_size",
    "masks of the answers": "a smaller batch_size",
    "masks of": "a smaller per_device_train_batch_size or steps_per_generation, fewer processes on a machine",
    "vLLM": "a smaller vllm_gpu_memory_utilization, vllm_enable_sleep_mode: true, or vLLM on GPUs of its own",
}
NUM_ADVISED = 3
NO_LIMITS = Limits()


class DoesNotFitError(ValueError):
    """The estimate is above the available memory."""


def check_footprint(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: Any,
    samples: Sequence[AVSample],
    *,
    target_args: TargetArguments | None = None,
) -> Footprint:
    """Log the estimate, and raise an error if the run does not fit.

    Args:
        model_args: arguments of the model, and the limits.
        data_args: arguments that say how clips are given to the model.
        training_args: `AuroraSFTConfig` or `AuroraGRPOConfig`.
        samples: rows of the benchmark's table; only the header of one frame is read of the media.
        target_args: arguments of supervised fine-tuning, which name the teacher.

    Raises:
        DoesNotFitError: if the estimate is above a limit, unless `ignore_memory_estimate` is set.
    """
    device, launch = training_args.device, Launch.of(training_args)
    memory = device_memory(device)
    footprint = estimate_footprint(
        model_args,
        data_args,
        training_args,
        launch=launch,
        clips=Clips.of(samples),
        device_memory=memory,
        teacher=None if target_args is None else live_teacher(target_args, training_args),
    )
    limits = Limits.of(model_args, launch, device_memory=memory, host_memory=host_memory())
    logger.info("%s", render(footprint, limits=limits, tflops=known_tflops(device)))
    text = complaint(footprint, limits)
    if text is not None and not model_args.ignore_memory_estimate:
        raise DoesNotFitError(text)
    return footprint


def known_tflops(device: torch.device) -> float | None:
    """Return the peak of a device by its data sheet; None if it is not listed."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def complaint(footprint: Footprint, limits: Limits) -> str | None:
    """Explain why a run does not fit, by its largest parts and what makes them smaller; None if it fits."""
    lines: list[str] = []
    if limits.device is not None and footprint.peak > limits.device:
        lines += _excess("", footprint.peak, limits.device, footprint.device)
    if limits.host is not None and footprint.host_peak > limits.host:
        lines += _excess(" in host memory", footprint.host_peak, limits.host, footprint.host)
    if not lines:
        return None
    lines.append(
        "`aurora-rl footprint` estimates without running. If you know better: memory_limit_gb sets what a device has, "
        "ignore_memory_estimate: true runs without regard to the estimate."
    )
    return "\n".join(lines)


def _excess(where: str, num_bytes: int, limit: int, parts: Iterable[Part]) -> Iterator[str]:
    yield (
        f"this run is estimated at {_gb(num_bytes)}{where} for each process, and there are {_gb(limit)}. "
        "Its largest parts, and what makes them smaller if it is not set already:"
    )
    for part in sorted(fullest(parts), key=lambda part: -part.num_bytes)[:NUM_ADVISED]:
        advice = next(text for start, text in ADVICE.items() if part.name.startswith(start))
        yield f"  {part.name}, {_gb(part.num_bytes)}: {advice}"


def render(
    footprint: Footprint,
    *,
    limits: Limits = NO_LIMITS,
    tflops: float | None = None,
    utilisation: float = UTILISATION,
) -> str:
    """Return the estimate as text."""
    work = footprint.work
    lines = [
        f"estimated memory of each process ({footprint.launch}):",
        f"  {work.rows} rows of {work.prompt_tokens:,} + {work.completion_tokens:,} tokens, "
        + (f"{work.frames} frames of {work.size[1]} x {work.size[0]}" if work.frames else "sound alone"),
        *([f"  {work.tokens:,} of these {work.row_tokens:,} tokens, as prompts are shared"] * work.shares_prompts),
        *_rows(footprint.device),
        _total("peak", footprint.peak, limits.device),
    ]
    if footprint.host:
        peak = _total("peak", footprint.host_peak, limits.host)
        lines += ["in host memory, for each process:", *_rows(footprint.host), peak]
    if footprint.disk:
        lines += ["on disk:", *_rows(footprint.disk)]
    return "\n".join([*lines, *_operations(footprint.flops, tflops, utilisation)])


def _rows(parts: Iterable[Part]) -> Iterator[str]:
    for part in parts:
        phase, _, turn = part.when.partition(":")
        note = "" if part.when == ALWAYS else f"  while {phase}" + ", one after the other" * bool(turn)
        yield f"  {part.name:<46}{_gb(part.num_bytes):>12}{note}"


def _total(name: str, num_bytes: int, limit: int | None) -> str:
    return f"  {name:<46}{_gb(num_bytes):>12}" + ("" if limit is None else f"  of {_gb(limit)}")


def _operations(flops: StepFlops, tflops: float | None, utilisation: float) -> Iterator[str]:
    """Yield lines of a step's operations by kind, and the least time of each."""
    speed = f", and their time at {utilisation:.0%} of {tflops:g} TFLOP/s, at least" if tflops else ""
    yield f"estimated operations of a step, each process{speed}:"
    shares = {**dataclasses.asdict(flops), "whole step": flops.total}
    for name, amount in shares.items():
        if amount:
            time = f"{least_seconds(amount, tflops, utilisation):>10,.2g} s" if tflops else ""
            teraflop = f"{amount / 1e12:,.0f}" if amount >= 1e13 else f"{amount / 1e12:.2g}"
            yield f"  {name:<43}{teraflop:>9} TFLOP{time}"


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:,.2f} MB"
