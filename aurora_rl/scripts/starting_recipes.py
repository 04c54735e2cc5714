"""Recipes to start from: SFT, GRPO and an evaluation on a manifest of own clips, fit for the machine's GPUs.

`aurora-rl init` writes them. Sizes are chosen by the estimate of `aurora_rl.footprint`: the first plan that fits.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.trackers import default_tracker
from aurora_rl.data.media import read_clip_size
from aurora_rl.files.packaged import find_launch
from aurora_rl.footprint import Launch, complaint
from aurora_rl.footprint.by_hand import estimate
from aurora_rl.footprint.parameters import build_meta_model
from aurora_rl.models.heads import MaskHead, head_configs
from aurora_rl.models.heads.segmenters import FRAME_ENCODERS
from aurora_rl.models.loading import saved_clip_options
from aurora_rl.scripts.own_clips import OwnClips, can_be_read

#: Mask decoder that a plain MLLM starts with, as in the paper.
SAM = {"type": "sam", "checkpoint": "facebook/sam-vit-huge", "image_size": 1024}
#: Weights above which LoRA is trained instead of all of them, and below which a model counts as a toy.
LORA_ABOVE, TOY_BELOW = 1e9, 5e7
#: Rows of an optimiser step of SFT, and prompts of one of GRPO, where the data has so many.
SFT_ROWS, GRPO_PROMPTS = 32, 8
EPOCHS = {"sft": 3, "grpo": 1}
MAX_PIXELS = 196608  # the most that the processor takes of a frame, about 443 x 443

#: A key of the YAML file, its value, and a comment.
Line = tuple[str, Any, str]


@dataclasses.dataclass(frozen=True)
class Machine:
    """The devices that recipes are written for.

    Attributes:
        num_gpus: number of GPUs; 0 for the CPU.
        gpu_memory_gb: memory of one GPU in GB of 10^9 bytes.
        host_memory_gb: memory of the machine in GB.
    """

    num_gpus: int
    gpu_memory_gb: float
    host_memory_gb: float

    def __str__(self) -> str:
        if not self.num_gpus:
            return f"a CPU with {self.host_memory_gb:.0f} GB"
        return f"{self.num_gpus} GPU{'s' * (self.num_gpus > 1)} of {self.gpu_memory_gb:.0f} GB"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is computed at once, and where.

    Attributes:
        launch: name of the config of `accelerate launch`.
        batch_size: rows of a process at once.
        load_in_4bit: whether the language model has 4 bits a weight beneath LoRA.
    """

    launch: str
    batch_size: int
    load_in_4bit: bool = False


@dataclasses.dataclass(frozen=True)
class Model:
    """The model to start from, as far as it decides what is written.

    Attributes:
        name: folder or hub name.
        num_weights: number of weights; None where the config cannot be read, as without a network.
        unread: why the config cannot be read, and what to do; empty where it is read.
        segmenter: config of its mask decoder; None for a plain MLLM.
        knows_clips: whether the checkpoint records how clips were given to it.
    """

    name: str
    num_weights: int | None
    segmenter: dict[str, Any] | None
    knows_clips: bool
    unread: str = ""

    @classmethod
    def read(cls, name: str) -> Model:
        """Read the config of a model; a ValueError names one that is no model."""
        try:
            config = build_meta_model(ModelArguments(name), Launch()).base
        except OSError as error:
            return cls(name, None, None, False, unread=str(error))
        found = head_configs(config.config).get(MaskHead.name)
        return cls(name, config.num_parameters(), found, saved_clip_options(name) is not None)

    def for_clips(self, data: str, clips: OwnClips) -> Model:
        """Return the model; where the clips cannot be read with its sampling, it is as one that knows none."""
        options = saved_clip_options(self.name) if self.knows_clips else None
        if options is None or can_be_read(data, clips, fps=options.fps, num_frames=options.num_frames):
            return self
        return dataclasses.replace(self, knows_clips=False)

    @property
    def uses_lora(self) -> bool:
        return self.num_weights is None or self.num_weights > LORA_ABOVE

    @property
    def is_toy(self) -> bool:
        return self.num_weights is not None and self.num_weights < TOY_BELOW

    @property
    def caches_embeddings(self) -> bool:
        """Whether its frozen image encoder is slow, so that embeddings are kept on disk."""
        return FRAME_ENCODERS[str((self.segmenter or SAM)["type"])].cacheable


@dataclasses.dataclass(frozen=True)
class Written:
    """A recipe's text, and what is said of it.

    Attributes:
        text: content of the YAML file.
        command: command that starts it.
        problem: why it does not fit into memory; None if it does, or is not known.
    """

    text: str
    command: str
    problem: str | None


def write_recipe(kind: str, data: str, clips: OwnClips, model: Model, machine: Machine, config: str) -> Written:
    """Write a recipe for the first plan that fits; where none does, for the smallest.

    Args:
        kind: "sft", "grpo" or "evaluate".
        data: path of the manifest, as the recipe names it.
        clips: what it holds.
        model: model that training starts from.
        machine: devices that it runs on.
        config: path of the file that will hold it, for its first comment.
    """
    problem, memory = None, "not estimated: the model's config cannot be read here"
    for plan in _plans(kind, machine, model):
        lines = _LINES[kind](_Choices(data, clips, model, machine, plan))
        if model.num_weights is None:
            break
        peak, problem = _fit(kind, lines, clips, model, machine, plan)
        memory = f"estimated at {peak:.1f} GB {'a GPU' if machine.num_gpus else 'for the process'}"
        if problem is None:
            break
    is_alone = plan.launch in ("cpu", "single_gpu")
    words = ["aurora-rl", kind, "--config", config]
    words += [] if kind == "evaluate" and is_alone else ["--launch", plan.launch]
    if not is_alone:
        words += ["--num_processes", str(machine.num_gpus)]
    command = shlex.join(words)
    head = [f"# {command}", f"# For {machine}. Memory: {memory}. Time and score: not measured."]
    head += [f"# Data: {line}" for line in clips.describe()]
    return Written("\n".join([*head, *map(_line, lines)]) + "\n", command, problem)


def _plans(kind: str, machine: Machine, model: Model) -> Iterator[Plan]:
    """Yield plans, from the fastest to the one that takes least memory."""
    sizes = {"sft": (4, 2, 1), "grpo": (8, 4, 2, 1), "evaluate": (8, 4, 2, 1)}[kind]
    if kind == "evaluate":
        launches = ["cpu" if not machine.num_gpus else "single_gpu" if machine.num_gpus == 1 else "multi_gpu"]
    elif not machine.num_gpus:
        launches = ["cpu"]
    else:
        launches = ["zero2", "zero3" if machine.num_gpus > 1 else "single_gpu"]
        if machine.num_gpus == 1 and not model.uses_lora:  # LoRA's whole modules need DeepSpeed's float32 copies
            launches = ["single_gpu"]
    yield from (Plan(launch, size) for launch in launches for size in sizes)
    if machine.num_gpus == 1 and model.uses_lora and kind != "evaluate":
        yield Plan("single_gpu", 1, load_in_4bit=True)


def _fit(
    kind: str, lines: Sequence[Line], clips: OwnClips, model: Model, machine: Machine, plan: Plan
) -> tuple[float, str | None]:
    """Estimate a recipe; the peak of a device in GB, and why it does not fit, if it does not."""
    content: dict[str, Any] = {key: value for key, value, _ in lines if key}
    content = {
        **clips.keys,
        "max_pixels": MAX_PIXELS,
        **content,
        "model": model.name,
    }  # the stage before it, whose model this one starts from, has not run
    if model.segmenter is None:
        content["segmenter"] = SAM
    if model.uses_lora and kind == "grpo":
        content["use_peft"] = True
    width, height = max((read_clip_size(sample) for sample in clips.samples), key=lambda size: size[0] * size[1])
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(content, file)
        file.flush()
        asked = argparse.Namespace(
            recipe=kind,
            config=file.name,
            options=[],
            launch=find_launch(plan.launch),
            processes=max(1, machine.num_gpus),
            machines=None,
            zero=None,
            clips=len({sample.media_id for sample in clips.samples}),
            frames=None,
            seconds=None,
            frame_size=(height, width),
            gpu_memory_gb=machine.gpu_memory_gb if machine.num_gpus else None,
            host_memory_gb=machine.host_memory_gb,
        )
        footprint, limits = estimate(asked)
    return footprint.peak / 1e9, complaint(footprint, limits)


# Lines of the recipes


@dataclasses.dataclass(frozen=True)
class _Choices:
    data: str
    clips: OwnClips
    model: Model
    machine: Machine
    plan: Plan

    @property
    def output(self) -> str:
        """Folder of all outputs, named after the manifest."""
        path = Path(self.data)
        name = re.sub(r"[^\w.-]+", "_", path.stem or path.resolve().name).strip(".") or "clips"
        return f"outputs/{name}"

    @property
    def has_chains(self) -> bool:
        return all(sample.chain is not None for sample in self.clips.train) and bool(self.clips.train)

    @property
    def num_processes(self) -> int:
        return max(1, self.machine.num_gpus)

    @property
    def completion_length(self) -> int:
        return (128 if self.model.is_toy else 512) if self.has_chains else 64


def _model_lines(choices: _Choices, name: str) -> Iterator[Line]:
    model = choices.model
    yield "model", name, "" if name == model.name else "what the stage before it leaves"
    if name == model.name and model.segmenter is None:
        yield "segmenter", SAM, "the mask decoder that it starts with"
    if choices.machine.num_gpus:
        yield "dtype", "bfloat16", ""


def _data_lines(choices: _Choices, *, is_training: bool, is_first: bool = False) -> Iterator[Line]:
    clips, says_clips = choices.clips, is_first and not choices.model.knows_clips
    yield "", None, "" if says_clips else "fps, num_frames and max_pixels are those that the model was trained with"
    yield "data_root", choices.data, "the manifest; paths in it are relative to its folder"
    for key, value in clips.keys.items():
        if key == "columns":
            yield key, value, "the manifest's names of columns, by the names here"
        elif key == "skip_unlabelled":
            yield key, value, "rows without masks can be predicted, but neither trained nor scored"
        elif key == "benchmark":
            yield key, value, ""
        elif says_clips:
            yield key, value, "frames a second that are sampled" if key == "fps" else "at most, evenly spaced"
    if says_clips:
        yield "max_pixels", MAX_PIXELS, "of a frame; larger ones are scaled down"
    if is_training:
        yield "train_split", clips.train_split, ""
        yield (
            "eval_split",
            clips.eval_split,
            "" if clips.eval_split else "the manifest has no split for it, such as val",
        )
    if choices.model.caches_embeddings:
        yield "embedding_cache", f"{choices.output}/sam_embeddings", "21 MB a clip of 10 frames"


def _training_lines(choices: _Choices, kind: str, *, steps: int) -> Iterator[Line]:
    is_gpu, has_eval = bool(choices.machine.num_gpus), choices.clips.eval_split is not None
    interval = max(1, min(200, steps // 5))
    yield "num_train_epochs", EPOCHS[kind], f"{steps} steps in all"
    yield "lr_scheduler_type", "cosine", ""
    yield "warmup_steps", min(30, steps // 10), ""
    yield "max_grad_norm", 1.0, ""
    yield "bf16", is_gpu, ""
    yield "gradient_checkpointing", is_gpu, ""
    if not is_gpu:
        yield "use_cpu", True, ""
    yield "", None, ""
    yield "eval_strategy", "steps" if has_eval else "no", ""
    if has_eval:
        yield "eval_steps", interval, ""
    yield "save_strategy", "steps", ""
    yield "save_steps", interval, ""
    yield "save_total_limit", 2, ""
    yield "logging_steps", 1 if kind == "grpo" or steps < 100 else 10, ""
    yield "report_to", default_tracker(), "trackio (a page of this machine), tensorboard, wandb or none"


def _sft_lines(choices: _Choices) -> list[Line]:
    model, size, rows = choices.model, choices.plan.batch_size, max(1, len(choices.clips.train))
    together = size * choices.num_processes
    accumulation = max(1, min(SFT_ROWS, rows) // together)
    steps = EPOCHS["sft"] * math.ceil(rows / (together * accumulation))
    target = ("chain", "the row's reasoning") if choices.has_chains else ("answer", "not every row has a chain")
    return [
        *_model_lines(choices, model.name),
        ("freeze", ["towers"], "what sees and hears stays as it is"),
        *([("use_peft", True, "LoRA; the mask decoder is trained whole")] if model.uses_lora else []),
        *([("load_in_4bit", True, "needs bitsandbytes")] if choices.plan.load_in_4bit and model.uses_lora else []),
        *_data_lines(choices, is_training=True, is_first=True),
        ("target", *target),
        ("", None, ""),
        ("output_dir", f"{choices.output}/sft", ""),
        ("per_device_train_batch_size", size, ""),
        ("per_device_eval_batch_size", size, ""),
        ("gradient_accumulation_steps", accumulation, f"{together * accumulation} rows a step"),
        ("learning_rate", 1e-3 if model.is_toy else 1e-4 if model.uses_lora else 1e-5, ""),
        *_training_lines(choices, "sft", steps=steps),
    ]


def _grpo_lines(choices: _Choices) -> list[Line]:
    model, size, rows = choices.model, choices.plan.batch_size, max(1, len(choices.clips.train))
    group = 8 if choices.machine.num_gpus else 4
    size = min(size, group)
    together = size * choices.num_processes
    whole = group // math.gcd(together, group)  # so many accumulated steps hold whole groups
    accumulation = whole * max(1, min(GRPO_PROMPTS, rows) * group // (together * whole))
    steps = EPOCHS["grpo"] * max(1, math.ceil(rows * group / (together * accumulation)))
    rewards = ["reward_fns.mask_iou:mask_iou_reward"]
    if choices.has_chains:
        rewards.insert(0, "reward_fns.format:format_reward")
        rewards.append("reward_fns.reasoning_consistency:reasoning_consistency_reward")
    knows_categories = all(bool(sample.category) for sample in choices.clips.train)
    if knows_categories:
        rewards.append("reward_fns.category:category_reward")
    return [
        *_model_lines(choices, f"{choices.output}/sft"),
        ("freeze", ["towers"], ""),
        *([("load_in_4bit", True, "needs bitsandbytes")] if choices.plan.load_in_4bit and model.uses_lora else []),
        *_data_lines(choices, is_training=True),
        ("", None, ""),
        ("reward_funcs", rewards, "of your own: mine.py:my_reward"),
        ("reward_weights", [1.0] * len(rewards), ""),
        ("beta", 0.04, "weight of the KL divergence from the model before"),
        ("mask_loss_on", "correct_only" if knows_categories else "all", "completions whose masks are trained as well"),
        ("", None, ""),
        ("output_dir", f"{choices.output}/grpo", ""),
        ("num_generations", group, "completions of a prompt, which are compared"),
        ("per_device_train_batch_size", size, "completions"),
        ("per_device_eval_batch_size", group, ""),
        ("gradient_accumulation_steps", accumulation, f"{together * accumulation // group} prompts a step"),
        ("max_completion_length", choices.completion_length, "tokens"),
        ("learning_rate", 5e-4 if model.is_toy else 1e-5 if model.uses_lora else 1e-6, ""),
        *_training_lines(choices, "grpo", steps=steps),
    ]


def _evaluate_lines(choices: _Choices) -> list[Line]:
    tests = choices.clips.test_splits
    note = "what it was trained on: the manifest has no other split" if choices.clips.train_split in tests else ""
    return [
        *_model_lines(choices, f"{choices.output}/grpo"),
        *_data_lines(choices, is_training=False),
        ("", None, ""),
        ("output_dir", f"{choices.output}/eval", ""),
        ("split", list(tests), note),
        ("max_completion_length", choices.completion_length, ""),
        ("append_seg", True, "a completion without [SEG] gets masks all the same"),
        ("batch_size", choices.plan.batch_size, ""),
        *([] if choices.machine.num_gpus else [("use_cpu", True, "")]),
    ]


_LINES = {"sft": _sft_lines, "grpo": _grpo_lines, "evaluate": _evaluate_lines}


_PLAIN: Mapping[str, Any] = {"width": 10_000, "allow_unicode": True, "sort_keys": False}


def _line(line: Line) -> str:
    key, value, note = line
    if not key:
        return f"\n# {note}" if note else ""
    if isinstance(value, float) and 0 < value < 1e-2:  # YAML reads 1e-05 as a text
        text = f"{key}: {value:.1e}"
    else:
        is_flow = isinstance(value, list | dict)
        text = yaml.safe_dump(value if is_flow else {key: value}, default_flow_style=is_flow, **_PLAIN).strip()
        text = f"{key}: {text}" if is_flow else text
    return text + (f"  # {note}" if note else "")
