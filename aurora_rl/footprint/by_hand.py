"""The estimate of the command `aurora-rl footprint`, for a config that is not launched yet."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from aurora_rl.assembly.arguments import DataArguments, ModelArguments, RewardArguments, TargetArguments
from aurora_rl.assembly.data_sets import data_sets, main_set
from aurora_rl.assembly.parser import RecipeParser
from aurora_rl.evaluation.of_model import EvaluationArguments
from aurora_rl.footprint.answering import estimate_answering
from aurora_rl.footprint.estimate import Footprint, estimate_footprint, live_teacher
from aurora_rl.footprint.launch import Launch
from aurora_rl.footprint.limits import Limits
from aurora_rl.footprint.report import complaint, render
from aurora_rl.footprint.workload import Clips
from aurora_rl.tasks.base import load_task
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from aurora_rl.trainers.sft_config import AuroraSFTConfig

#: The arguments of each recipe's `main`.
RECIPES: dict[str, tuple[Any, ...]] = {
    "sft": (ModelArguments, DataArguments, TargetArguments, AuroraSFTConfig),
    "grpo": (ModelArguments, DataArguments, RewardArguments, AuroraGRPOConfig),
    "evaluate": (ModelArguments, DataArguments, EvaluationArguments),
}


def estimate_recipe(args: argparse.Namespace) -> tuple[str, bool]:
    """Return the text to print, and whether the run fits into the given limits; errors as in `estimate`."""
    footprint, limits = estimate(args)
    text = render(footprint, limits=limits, tflops=args.tflops, utilisation=args.utilisation)
    problem = complaint(footprint, limits)
    return (text, True) if problem is None else (f"{text}\n\n{problem}", False)


def estimate(args: argparse.Namespace) -> tuple[Footprint, Limits]:
    """Estimate for the command's arguments, and return the limits that they give.

    Raises:
        ValueError: if an option is unknown, or arguments contradict each other.
        OSError: if a config cannot be read.
    """
    # Without `use_cpu` mixed precision demands a GPU, which an estimate does not need.
    command = ["--config", args.config, *args.options, "--use_cpu", "true"]
    parser = RecipeParser(RECIPES[args.recipe], prog="aurora-rl footprint")
    model_args, data_args, *others = parser.parse_args_and_config(command)
    if data_args.data is not None:
        data_args = main_set(data_sets(data_args)).args
    launch = _launch(args)
    clips = _clips(args, data_args)
    limits = Limits.of(
        model_args, launch, device_memory=_bytes(args.gpu_memory_gb), host_memory=_bytes(args.host_memory_gb)
    )
    if args.recipe == "evaluate":
        [evaluation_args] = others
        footprint = estimate_answering(
            model_args,
            data_args,
            evaluation_args,
            launch=launch,
            clips=clips,
            device_memory=_bytes(args.gpu_memory_gb) or limits.device,
        )
        return footprint, limits
    third, training_args = others
    footprint = estimate_footprint(
        model_args,
        data_args,
        training_args,
        launch=launch,
        clips=clips,
        device_memory=_bytes(args.gpu_memory_gb) or limits.device,
        teacher=live_teacher(third, training_args) if isinstance(third, TargetArguments) else None,
    )
    return footprint, limits


def _bytes(gigabytes: float | None) -> int | None:
    return None if gigabytes is None else round(gigabytes * 1e9)


def _clips(args: argparse.Namespace, data_args: DataArguments) -> Clips:
    head = load_task(data_args.task).head
    if args.frames == 0 and head is not None:
        raise ValueError(
            f"--frames is 0, but the task's answers are {head} on frames: give the clips' number of frames"
        )
    clips = Clips.assumed(data_args, frames=args.frames)
    known = {
        "size": args.frame_size and tuple(args.frame_size),
        "count": args.clips,
        "seconds": args.seconds,
    }
    return dataclasses.replace(clips, **{name: value for name, value in known.items() if value is not None})


def _launch(args: argparse.Namespace) -> Launch:
    launch = Launch.read(args.launch) if args.launch else Launch()
    changes: dict[str, Any] = {}
    if args.processes is not None:
        changes["num_processes"] = args.processes
    if args.machines is not None:
        changes["num_machines"] = args.machines
    if args.zero is not None:
        changes |= {"zero_stage": args.zero, "is_deepspeed": args.zero > 0}
    return dataclasses.replace(launch, **changes)
