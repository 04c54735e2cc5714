"""Targets and teacher of supervised fine-tuning: the text of each row, and the features that are distilled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from aurora_rl.assembly.arguments import DataArguments, ModelArguments, TargetArguments
from aurora_rl.assembly.data_sets import DataSet, data_sets, main_set
from aurora_rl.assembly.encoder import prompt_options
from aurora_rl.caches.teacher_features import TeacherFeatures
from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.models.encoding import PromptOptions, SampleEncoder
from aurora_rl.models.loading import family_that_reads, load_model
from aurora_rl.models.sharding import loading_whole
from aurora_rl.models.teacher import Teacher, fingerprint_teacher, teacher_target
from aurora_rl.tasks.base import Target, Task, load_task
from aurora_rl.tasks.targets import mistakes_and_replay


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


def assemble_targets(args: TargetArguments, sets: Sequence[DataSet]) -> Callable[[AVSample], Target]:
    """Return the function that makes the target of a row of any of a run's sets.

    Raises:
        ValueError: if the task of a set has no such target, or a teacher would read several tasks.
    """
    if args.teacher is not None and len({_asked(each) for each in sets}) > 1:
        raise ValueError("data: a teacher is asked one task in one way: distil on data sets that share both")
    of_sets = {
        each.name: assemble_target(dataclasses.replace(args, target=_target_of(each, args)), load_task(each.args.task))
        for each in sets
    }
    return lambda sample: of_sets[sample.dataset](sample)


def _asked(of_set: DataSet) -> tuple[str, PromptOptions]:
    return of_set.args.task, prompt_options(of_set.args)


def _target_of(of_set: DataSet, args: TargetArguments) -> str | None:
    return of_set.target or (None if of_set.has_own_task else args.target)


def choose_rows(
    samples: Sequence[AVSample], args: TargetArguments, sets: Sequence[DataSet], *, seed: int
) -> list[AVSample]:
    """Choose the rows to train on: of a set with a reflective target its mistakes and a replay, of others all.

    Raises:
        ValueError: if a set has no mistakes, or its target leaves `reflections` unread.
    """
    chosen: list[AVSample] = []
    for each in sets:
        rows, target = [sample for sample in samples if sample.dataset == each.name], _target_of(each, args)
        if target in load_task(each.args.task).reflection_targets:
            rows = mistakes_and_replay(rows, replay_share=args.replay_share, seed=seed)
        elif each.args.reflections is not None:
            raise ValueError(f"target {target!r} would leave `reflections` unread: set `target: reflection`")
        chosen += rows
    return chosen


def assemble_teacher(args: TargetArguments, model_args: ModelArguments, data_args: DataArguments) -> Teacher:
    """Load the teacher, whole on every process; it reads clips as the student does, with its own instruction.

    Raises:
        ValueError: if the arguments name no teacher, or the task has no target for one.
    """
    data_args = main_set(data_sets(data_args)).args
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
    data_args = main_set(data_sets(data_args)).args
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
