"""What `--dry_run` does: everything that can fail before a step is made is tried, and nothing is trained or written.

It counts the samples, opens every file that they name, encodes one batch, asks the rewards about right answers, and
prints memory, time and GPU hours of the whole run. Weights are not loaded: the model is built from its config.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoProcessor

from aurora_rl.assembly.arguments import DataArguments, ModelArguments, RewardArguments, TargetArguments
from aurora_rl.assembly.benchmarks import load_training_splits
from aurora_rl.assembly.data_sets import data_sets, main_set, reward_sets
from aurora_rl.assembly.encoder import assemble_encoder, prompt_options
from aurora_rl.assembly.teacher import assemble_targets, choose_rows
from aurora_rl.data.containers import MediaError
from aurora_rl.data.media import read_clip_size, read_frame_size, read_mask_size
from aurora_rl.data.sample import AVSample
from aurora_rl.data.sound import open_sound
from aurora_rl.evaluation.of_model import EvaluationArguments, samples_of
from aurora_rl.footprint import Clips, Footprint, Launch, Limits, check_footprint, complaint, estimate_answering, render
from aurora_rl.footprint.flops import PEAK_TFLOPS, UTILISATION, least_seconds
from aurora_rl.footprint.limits import device_memory, host_memory
from aurora_rl.footprint.parameters import MetaModel, build_meta_model
from aurora_rl.footprint.report import DoesNotFitError, known_tflops
from aurora_rl.logs import setup_logging
from aurora_rl.models.collate import SFTCollator
from aurora_rl.models.encoding import EncodedSample, SampleEncoder, SetPrompt
from aurora_rl.models.head_tokens import ensure_head_token, vocabulary_rows
from aurora_rl.models.heads import Head, MaskHead, head_class, head_configs
from aurora_rl.models.heads.segmenters import FRAME_ENCODERS
from aurora_rl.models.loading import LoadedModel
from aurora_rl.rewards import RewardError, load_guarded
from aurora_rl.rollout.calls import Caller
from aurora_rl.tasks.base import Task, load_task
from aurora_rl.trainers.grounded_rollouts import Predictions, RolloutBatch, reward_rows
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from aurora_rl.trainers.sft_config import AuroraSFTConfig

logger = logging.getLogger(__name__)

#: Device whose peak is assumed where the run's own is not listed.
ASSUMED_GPU = "A100"
#: Rows that rewards are asked about.
NUM_ASKED = 8
#: Problems of files that are shown.
NUM_SHOWN = 20
#: Samples of a split that are listed.
NUM_LISTED = 3
#: Logit of a pixel inside a true mask; outside it is the negative.
SURE = 20.0


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """End the program with code 1 and a line where something is wrong with data, model or rewards."""
    try:
        yield
    except (OSError, RewardError, ValueError) as error:
        raise SystemExit(f"dry run: {error}") from error


@_told()
def try_sft(
    model_args: ModelArguments, data_args: DataArguments, target_args: TargetArguments, training_args: AuroraSFTConfig
) -> None:
    """Try what supervised fine-tuning needs; a SystemExit with code 1 if the run would fail."""
    if training_args.process_index:
        return
    setup_logging()
    sets = data_sets(data_args)
    target = assemble_targets(target_args, sets)
    train, evaluated = load_training_splits(data_args)
    train = choose_rows(train, target_args, sets, seed=training_args.seed)
    samples = _check_samples([*train, *evaluated])
    _, encode = _encoder(model_args, data_args, samples)
    SFTCollator(encode, encode.answer_token_id, target).check(samples)
    if training_args.environment_factory is not None:
        Caller(encode, training_args.environment_factory).check(samples)
    _show_batch(train, encode, training_args.per_device_train_batch_size)
    usual = main_set(sets).args
    _show_training(model_args, usual, training_args, samples, len(train), target_args=target_args)


@_told()
def try_grpo(
    model_args: ModelArguments, data_args: DataArguments, reward_args: RewardArguments, training_args: AuroraGRPOConfig
) -> None:
    """Try what GRPO needs; a SystemExit with code 1 if the run would fail."""
    if training_args.process_index:
        return
    setup_logging()
    sets = data_sets(data_args)
    reward_funcs = load_guarded(
        reward_args.reward_funcs,
        timeout_s=training_args.reward_timeout_s,
        several_sets=data_args.data is not None,
        of_sets=reward_sets(sets, reward_args.reward_funcs),
    )
    train, evaluated = load_training_splits(data_args)
    samples = _check_samples([*train, *evaluated])
    meta, encode = _encoder(model_args, data_args, samples)
    if training_args.environment_factory is not None:
        Caller(encode, training_args.environment_factory)  # shows the tools
    group = training_args.num_generations or 1
    batch = _show_batch(train, encode, max(training_args.per_device_train_batch_size // group, NUM_ASKED))
    _show_rewards(reward_funcs, batch, encode, meta)
    rows = len(train) * group * training_args.num_iterations
    _show_training(model_args, main_set(sets).args, training_args, samples, rows)


@_told()
def try_evaluation(model_args: ModelArguments, data_args: DataArguments, args: EvaluationArguments) -> None:
    """Try what an evaluation needs; a SystemExit with code 1 if it would fail."""
    state = PartialState(cpu=args.use_cpu)
    if not state.is_main_process:
        return
    setup_logging()
    sets = data_sets(data_args)
    listed = [dataclasses.replace(sample, dataset=each.name) for each in sets for sample in samples_of(each, args)]
    samples = _check_samples(listed)
    _, encode = _encoder(model_args, data_args, samples)
    if args.environment_factory is not None:
        Caller(encode, args.environment_factory)  # shows the tools
    _show_batch(samples, encode, args.batch_size)
    launch = Launch(num_processes=state.num_processes, is_gpu=state.device.type == "cuda")
    memory = device_memory(state.device)
    footprint = estimate_answering(
        model_args,
        main_set(sets).args,
        args,
        launch=launch,
        clips=Clips.of(samples),
        device_memory=memory,
    )
    limits = Limits.of(model_args, launch, device_memory=memory, host_memory=host_memory())
    _say(render(footprint, limits=limits, tflops=known_tflops(state.device)))
    answers = len(samples) * (1 + args.num_samples) * (1 + len(args.ablations))
    _show_cost(footprint, math.ceil(answers / args.batch_size / state.num_processes), "batches", state.device)
    if (problem := complaint(footprint, limits)) and not model_args.ignore_memory_estimate:
        raise SystemExit(f"dry run: {problem}")


# Samples and their files


def _check_samples(samples: list[AVSample]) -> list[AVSample]:
    """Print how many samples there are, open all their files, and return them; a SystemExit names unreadable files."""
    if not samples:
        raise SystemExit("dry run: there is no sample in these splits")
    groups: dict[str, list[AVSample]] = {}
    for sample in samples:
        groups.setdefault(f"{sample.dataset}, {sample.split}".removeprefix(", "), []).append(sample)
    for name, rows in groups.items():
        _say(f"{name}: {_counts(rows)}")
        for sample in rows[:NUM_LISTED]:
            _say(f"  {sample.key[:60]!r}, {sample.num_frames} frames: {sample.reference[:60]!r}")
    headers = _headers(samples)
    problems = list(_unreadable(headers))
    _say(f"files: {len(headers)} opened, {len(problems)} unreadable")
    if problems:
        more = f"\n  and {len(problems) - NUM_SHOWN} more" if len(problems) > NUM_SHOWN else ""
        raise SystemExit("dry run: these files cannot be read:\n  " + "\n  ".join(problems[:NUM_SHOWN]) + more)
    return samples


def _counts(samples: Sequence[AVSample]) -> str:
    frames = [sample.num_frames for sample in samples] or [0]
    numbers = {
        "rows": len(samples),
        "clips": len({sample.media_id for sample in samples}),
        "references to nothing": sum(sample.is_null for sample in samples),
        "without sound": sum(sample.audio_path is None for sample in samples),
        "with masks": sum(sample.has_gt_masks for sample in samples),
        "with a chain": sum(sample.chain is not None for sample in samples),
    }
    counted = ", ".join(f"{name}: {number}" for name, number in numbers.items())
    return f"{counted}, {min(frames)} to {max(frames)} frames"


def _headers(samples: Sequence[AVSample]) -> dict[str, Callable[[], Any]]:
    """Return how each file is opened, by its path."""
    found: dict[str, Callable[[], Any]] = {}
    for sample in samples:
        if sample.video_path is not None:
            found.setdefault(sample.video_path, lambda sample=sample: read_clip_size(sample))  # type: ignore[misc]
        for path in sample.frame_paths:
            found.setdefault(path, lambda path=path: read_frame_size(path))  # type: ignore[misc]
        for path in filter(None, sample.mask_paths):
            found.setdefault(path, lambda path=path: read_mask_size(path))  # type: ignore[misc]
        if sample.audio_path is not None and sample.audio_path != sample.video_path:
            found.setdefault(sample.audio_path, lambda path=sample.audio_path: _open_sound(path))  # type: ignore[misc]
    return found


def _open_sound(path: str) -> None:
    with open_sound(path):
        pass


def _unreadable(headers: Mapping[str, Callable[[], Any]]) -> Iterator[str]:
    for path, open_file in headers.items():
        try:
            open_file()
        except (MediaError, OSError) as error:
            text = str(error)
            yield text if path in text else f"{path}: {text}"


# A batch


def _encoder(
    model_args: ModelArguments, data_args: DataArguments, samples: list[AVSample]
) -> tuple[MetaModel, SampleEncoder]:
    """Build the model and the encoder of samples without weights; a slow image encoder is left out."""
    sets = data_sets(data_args)
    usual = main_set(sets).args
    task = load_task(usual.task)
    meta = build_meta_model(model_args, Launch(), needs=task.head)
    processor = AutoProcessor.from_pretrained(model_args.model, trust_remote_code=False)
    configs = head_configs(meta.base.config)
    for name in configs:
        ensure_head_token(processor.tokenizer, vocabulary_rows(meta.base), head_class(name).token)
    if task.head is None or not FRAME_ENCODERS[configs[task.head]["type"]].cacheable:
        return meta, assemble_encoder(data_args, LoadedModel(meta.base, processor, meta.family), samples)
    prompts = {each.name: SetPrompt(load_task(each.args.task), prompt_options(each.args)) for each in sets if each.name}
    encode = SampleEncoder(meta.family, processor, None, task=task, options=prompt_options(usual), sets=prompts)
    encode.check(samples)
    return meta, encode


def _show_batch(samples: Sequence[AVSample], encode: SampleEncoder, size: int) -> list[EncodedSample]:
    """Encode the first rows, and print how long their prompts are."""
    rows = [encode(sample) for sample in samples[:size]]
    lengths = [len(row.prompt.prompt_ids) for row in rows]
    sizes = Counter(row.frame_size for row in rows)
    shown = ", ".join(f"{height} x {width}" for height, width in sizes)
    _say(f"one batch: {len(rows)} rows encoded, {min(lengths)} to {max(lengths)} tokens, frames of {shown} pixels")
    return rows


# Rewards


def _show_rewards(
    reward_funcs: Sequence[Callable[..., Any]],
    rows: Sequence[EncodedSample],
    encode: SampleEncoder,
    meta: MetaModel,
) -> None:
    """Ask each reward about right answers with the true masks, and print what it gives."""
    answers = ((row, gold_answer(encode.task_of(row.sample), row.sample)) for row in rows)
    asked = [(row, text) for row, text in answers if text is not None][:NUM_ASKED]
    if not asked:
        _say("rewards: not asked, for no row has a known answer")
        return
    columns = gold_columns([row for row, _ in asked], [text for _, text in asked], encode, meta)
    _say(f"rewards of {len(asked)} right answers:")
    for func in reward_funcs:
        if isinstance(func, torch.nn.Module):
            _say(f"  {type(func).__name__:<34} not asked: a model")
            continue
        result = func(**columns)
        values = asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result
        numbers = [value for value in values if value is not None]
        mean = f"{sum(numbers) / len(numbers):.3f}" if numbers else "-"
        none = f", does not apply to {len(values) - len(numbers)}" if len(numbers) < len(values) else ""
        note = "  (no right answer earns anything: is that meant?)" if numbers and not any(numbers) else ""
        _say(f"  {getattr(func, '__name__', str(func)):<34} {mean}{none}{note}")


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


def gold_answer(task: Task, sample: AVSample) -> str | None:
    """Return a right completion of a row: its usual target, else its answer without a chain; None if none is known."""
    for target in (task.target, task.targets().get("answer")):
        try:
            if target is not None:
                return target(sample).learned
        except ValueError:
            continue
    return None


def gold_columns(
    rows: Sequence[EncodedSample], texts: Sequence[str], encode: SampleEncoder, meta: MetaModel
) -> dict[str, Any]:
    """Return the arguments that a reward gets for right completions whose predictions are the truth."""
    head = None if encode.task.head is None else meta.base.heads[encode.task.head]
    answers = tuple(encode.task_of(row.sample).parse(text) for row, text in zip(rows, texts, strict=True))
    batch = RolloutBatch(rows, answers=answers, predictions=_gold_predictions(head, rows))
    prompts = [encode.text_prompt(row.sample) for row in rows]
    table = [row.sample.to_row() for row in rows]
    inputs = reward_rows(table, batch, head)
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    ids = [encode.tokenizer(text).input_ids for text in texts]
    names = dict.fromkeys(name for row in inputs for name in row)
    columns = {name: [row.get(name) for row in inputs] for name in names}
    ignore = {"trainer_state": None, "log_metric": lambda *_: None, "log_extra": lambda *_: None}
    return {"prompts": prompts, "completions": completions, "completion_ids": ids, **columns, **ignore}


def _gold_predictions(head: Head | None, rows: Sequence[EncodedSample]) -> tuple[Predictions, ...]:
    """Return logits of the true masks; a head that predicts something else counts as not asked."""
    if head is None:
        return ()
    if not isinstance(head, MaskHead):
        return (Predictions([None] * len(rows), torch.zeros(len(rows), dtype=torch.bool)),)
    masks = [row.gt_masks for row in rows]
    logits = [None if truth is None else torch.where(truth, SURE, -SURE) for truth in masks]
    return (Predictions(logits, torch.tensor([truth is not None for truth in masks])),)


# Cost


def _show_training(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: AuroraSFTConfig | AuroraGRPOConfig,
    samples: Sequence[AVSample],
    rows: int,
    *,
    target_args: TargetArguments | None = None,
) -> None:
    """Print memory and cost of a training; a SystemExit if it does not fit."""
    try:
        footprint = check_footprint(model_args, data_args, args, samples, target_args=target_args)
    except DoesNotFitError as error:
        raise SystemExit(f"dry run: {error}") from None
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    epochs = math.ceil(args.num_train_epochs * rows / per_step)
    steps = args.max_steps if args.max_steps > 0 else max(1, epochs)
    _show_cost(footprint, steps, "steps", args.device)


def _show_cost(footprint: Footprint, number: int, what: str, device: torch.device) -> None:
    """Print the least time and the GPU hours of a number of steps, and what is assumed."""
    tflops = known_tflops(device)
    peak = tflops or PEAK_TFLOPS[ASSUMED_GPU]
    seconds = number * least_seconds(footprint.flops.total, peak)
    processes = footprint.launch.num_processes
    _say(
        f"whole run: {number:,} {what}, at least {_short(seconds)} s, "
        f"{_short(seconds / 3600 * processes)} GPU hours on {processes} GPU{'s' * (processes > 1)}\n"
        f"  assumed: {'this GPU' if tflops else ASSUMED_GPU} at {UTILISATION:.0%} of {peak:g} TFLOP/s; evaluations, "
        "reading of files and the start are not counted; sampling takes longer, since memory bounds it\n"
        "dry run: nothing was trained or written"
    )


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}"


def _say(text: str) -> None:
    logger.info("%s", text)
