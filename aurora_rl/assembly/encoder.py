"""The encoder of samples, which gives clips to the model as the arguments say."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import yaml
from accelerate import PartialState

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.data_sets import DataSet, data_sets, main_set
from aurora_rl.caches.image_embeddings import EmbeddingCache
from aurora_rl.data.clip_reader import ClipReader
from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.files.packaged import find_config
from aurora_rl.files.plain import read_text_file
from aurora_rl.models.clip_options import ClipOptions
from aurora_rl.models.encoding import PromptOptions, SampleEncoder, SetPrompt
from aurora_rl.models.heads.segmenters import FrameEncoder
from aurora_rl.models.loading import LoadedModel
from aurora_rl.models.mllm import MLLMFamily
from aurora_rl.tasks.base import load_task
from aurora_rl.tasks.prompts import STEP_LABELS

logger = logging.getLogger(__name__)


def read_clip_options(config: str | Path) -> ClipOptions:
    """Read from a recipe's YAML file how clips are given to the model, for checkpoints that do not say it.

    Raises:
        ValueError: if the file holds no mapping.
    """
    args = _read_data_arguments(config)
    return ClipOptions(
        prompt=prompt_options(args),
        fps=args.fps,
        num_frames=args.num_frames or ClipOptions.num_frames,
        use_audio_in_video=args.use_audio_in_video,
        task=load_task(args.task).name,
    )


def read_task(config: str | Path) -> str:
    """Read the name of the task from a recipe's YAML file; raises as `read_clip_options`."""
    return _read_data_arguments(config).task


def _read_data_arguments(config: str | Path) -> DataArguments:
    fields = yaml.safe_load(read_text_file(find_config(str(config))))
    if not isinstance(fields, dict):
        raise ValueError(f"{config} holds no keys: give a recipe's config, such as recipes/synthetic/evaluate.yaml")
    known = {field.name for field in dataclasses.fields(DataArguments)}
    return DataArguments(**{"data_root": "", **{key: value for key, value in fields.items() if key in known}})


def prompt_options(args: DataArguments) -> PromptOptions:
    """Return the options of a prompt, from the arguments; the instruction is the task's where they give none."""
    return PromptOptions(
        args.asked_instruction(), args.system_prompt, args.min_pixels, args.max_pixels, drop_sound=args.drop_sound
    )


def assemble_encoder(
    args: DataArguments,
    loaded: LoadedModel,
    samples: list[AVSample],
    *,
    is_trainable: bool = True,
    load: Callable[[AVSample], AVClip] | None = None,
    frames_are_changed: bool = False,
    device: torch.device | str = "cpu",
) -> SampleEncoder:
    """Build the encoder of samples; where its head reads embeddings, first compute those of `samples` that are missing.

    The launched processes share that work, so all of them must call this. A task without a head needs no frame encoder
    and no embeddings.

    Args:
        args: arguments that say how clips are given to the model.
        loaded: the model, whose processor and head get the tensors.
        samples: all samples that will be encoded.
        is_trainable: whether the model is trained on them. If so, its checkpoints will record how clips were given to
            it, and a head that reads embeddings needs the cache; otherwise frames may be encoded without cache.
        load: function that reads a sample's media; a `ClipReader` by default.
        frames_are_changed: whether `load` returns other frames than those on disk. They are encoded without the cache,
            which is keyed by clip and must neither return nor store embeddings of changed frames.
        device: device of the frozen image encoder.

    Raises:
        ValueError: if training needs an embedding cache and the arguments name none.
    """
    read, sets = load or ClipReader(), data_sets(args)
    usual = main_set(sets)
    task, options = load_task(usual.args.task), prompt_options(usual.args)
    frame_inputs, blank_frame, uses_gpu = None, None, False
    if task.head is not None:
        frame_encoder = loaded.frame_encoder(task.head)
        if frame_encoder.cacheable:  # other encoders stay on the CPU, where the workers of a data loader can run them
            frame_encoder.to(device)
        blank_frame = torch.zeros(1, *frame_encoder.frame_shape)
        of_sets = {
            each.name: _inputs_of_set(
                each, frame_encoder, samples, read, is_trainable=is_trainable, frames_are_changed=frames_are_changed
            )
            for each in sets
            if load_task(each.args.task).head is not None
        }
        frame_inputs = _inputs_by_set({name: inputs for name, (inputs, _) in of_sets.items()})
        is_computed = any(is_computed for _, is_computed in of_sets.values())
        uses_gpu = is_computed and frame_encoder.cacheable and torch.device(device).type != "cpu"
    if is_trainable and samples:
        rows = [sample for sample in samples if sample.dataset == usual.name]
        loaded.remember_clips(ClipOptions.of_samples(rows, options, task=task.name))
    encode = SampleEncoder(
        loaded.family,
        loaded.processor,
        frame_inputs,
        task=task,
        options=options,
        load=read,
        sets={each.name: SetPrompt(load_task(each.args.task), prompt_options(each.args)) for each in sets if each.name},
        blank_frame=blank_frame,
        uses_gpu=uses_gpu,
    )
    encode.check(samples)
    for each in sets:
        _warn_of_lacking_sense(loaded.family, prompt_options(each.args))
    return encode


def _warn_of_lacking_sense(family: MLLMFamily, options: PromptOptions) -> None:
    """Tell of an instruction to write down what the model is not given."""
    lacking = {"look": family.sees is None, "listen": not family.hears or options.drop_sound}
    for step, is_lacking in lacking.items():
        label = STEP_LABELS[step]
        if is_lacking and options.instruction and label in options.instruction:
            logger.warning(
                "the instruction asks for a step %r, but the model is given no %s: it learns to make that up, so give "
                "an `instruction` without the step",
                label,
                "frames" if step == "look" else "sound",
            )


#: A function from a sample and its clip to the head's inputs (F, ...).
FrameInputs = Callable[[AVSample, AVClip], torch.Tensor]


def _inputs_of_set(
    of_set: DataSet,
    frame_encoder: FrameEncoder,
    samples: Sequence[AVSample],
    read: Callable[[AVSample], AVClip],
    *,
    is_trainable: bool,
    frames_are_changed: bool,
) -> tuple[FrameInputs, bool]:
    """Return the head's inputs of a data set's rows, and whether they are computed anew instead of read."""
    folder = of_set.args.embedding_cache
    if frame_encoder.cacheable and is_trainable and folder is None:
        raise ValueError("this head is trained on cached embeddings: set `embedding_cache` to a folder")
    if not frame_encoder.cacheable or folder is None or frames_are_changed:
        return _computed_inputs(frame_encoder), True
    rows = [sample for sample in samples if sample.dataset == of_set.name]
    return _cached_inputs(Path(folder), frame_encoder, rows, read), False


def _inputs_by_set(of_sets: Mapping[str, FrameInputs]) -> FrameInputs:
    """Return a function that asks each row's data set for its inputs."""
    return lambda sample, clip: of_sets[sample.dataset](sample, clip)


def _cached_inputs(
    folder: Path, frame_encoder: FrameEncoder, samples: list[AVSample], read: Callable[[AVSample], AVClip]
) -> FrameInputs:
    """Compute the embeddings that a cache lacks, together with all launched processes, and return its reader."""
    cache, state = EmbeddingCache(folder, frame_encoder), PartialState()
    cache.ensure(
        samples,
        lambda sample: read(sample).frames,
        process_index=state.process_index,
        num_processes=state.num_processes,
    )
    state.wait_for_everyone()
    cache.refresh()  # finds the shards that other processes have written
    return lambda sample, clip: cache.get(sample.media_id)


def _computed_inputs(frame_encoder: FrameEncoder) -> FrameInputs:
    return lambda sample, clip: frame_encoder.encode(clip.frames).cpu()
