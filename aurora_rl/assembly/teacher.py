"""Targets and teacher of supervised fine-tuning: the text of each row, and the features that are distilled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from aurora_rl.assembly.arguments import DataArguments, ModelArguments, TargetArguments
from aurora_rl.assembly.encoder import prompt_options
from aurora_rl.caches.teacher_features import TeacherFeatures
from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.models.encoding import PromptOptions, SampleEncoder
from aurora_rl.models.loading import family_that_reads, load_model
from aurora_rl.models.sharding import loading_whole
from aurora_rl.models.teacher import Teacher, fingerprint_teacher, teacher_target
from aurora_rl.tasks.base import Target, Task, load_task


def assemble_target(args: TargetArguments, task: Task) -> Callable[[AVSample], Target]:
    """Return the function that makes a row's target.

    Raises:
        ValueError: if the task has no such target.
    """
    if args.target is None:
        return task.target
    targets = task.targets()
    if args.target not in targets:
        known = f"choose from {', '.join(targets)}" if targets else "leave `target` out, it has one alone"
        raise ValueError(f"unknown target {args.target!r} of the task {task.name}: {known}")
    return targets[args.target]


def assemble_teacher(args: TargetArguments, model_args: ModelArguments, data_args: DataArguments) -> Teacher:
    """Load the teacher, whole on every process; it reads clips as the student does, with its own instruction.

    Raises:
        ValueError: if the arguments name no teacher, or the task has no target for one.
    """
    task = load_task(data_args.task)
    teacher_target(task)  # before the weights are read
    name = _teacher_name(args)
    family = family_that_reads(name, model_args.family)
    with loading_whole():
        loaded = load_model(name, family=family, needs="masks", dtype=model_args.dtype, is_trainable=False)

    def no_frames(sample: AVSample, clip: AVClip) -> torch.Tensor:
        return torch.zeros(len(clip.frames), 1)  # the teacher's mask decoder does not run

    options = _teacher_options(args, data_args)
    return Teacher(loaded, SampleEncoder(loaded.family, loaded.processor, no_frames, task=task, options=options))


def stored_features(
    args: TargetArguments,
    model_args: ModelArguments,
    data_args: DataArguments,
    samples: list[AVSample],
    *,
    device: torch.device | str = "cpu",
) -> TeacherFeatures:
    """Return the features of all samples from the arguments' file, after computing missing ones.

    The launched processes share that work, so all of them must call this. The teacher is loaded only if it
    is needed.

    Raises:
        ValueError: if the file belongs to another teacher.
    """
    assert args.teacher_features is not None
    options, task = _teacher_options(args, data_args), load_task(data_args.task)
    teacher_target(task)  # raises where the task has no features to distil
    fingerprint = fingerprint_teacher(_teacher_name(args), options, dtype=model_args.dtype, task=task.name)
    return TeacherFeatures(args.teacher_features, fingerprint).ensure(
        samples,
        lambda: assemble_teacher(args, model_args, data_args).to(device),
        batch_size=args.teacher_batch_size,
    )


def _teacher_name(args: TargetArguments) -> str:
    if args.teacher is None:
        raise ValueError("distillation needs a teacher: name its directory by `teacher`")
    return args.teacher


def _teacher_options(args: TargetArguments, data_args: DataArguments) -> PromptOptions:
    options = prompt_options(data_args)
    return dataclasses.replace(options, instruction=args.teacher_instruction or options.instruction)
