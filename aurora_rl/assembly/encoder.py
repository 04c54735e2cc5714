"""The encoder of samples, as the arguments say that clips are put to the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from accelerate import PartialState

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.caches.image_embeddings import EmbeddingCache
from aurora_rl.data.clip_reader import ClipReader
from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.files.plain import read_text_file
from aurora_rl.models.clip_options import ClipOptions
from aurora_rl.models.encoding import PromptOptions, SampleEncoder
from aurora_rl.models.heads.segmenters import build_frame_encoder
from aurora_rl.models.loading import LoadedModel


def read_clip_options(config: str | Path) -> ClipOptions:
    """How a recipe's YAML file says that clips are put to the model; for checkpoints that do not tell themselves.

    Raises:
        ValueError: if the file is no mapping.
    """
    fields = yaml.safe_load(read_text_file(config))
    if not isinstance(fields, dict):
        raise ValueError(f"{config} holds no keys: give a recipe's config, such as recipes/synthetic/evaluate.yaml")
    known = {field.name for field in dataclasses.fields(DataArguments)}
    args = DataArguments(**{"data_root": "", **{key: value for key, value in fields.items() if key in known}})
    return ClipOptions(
        prompt=prompt_options(args),
        fps=args.fps,
        num_frames=args.num_frames or ClipOptions.num_frames,
        use_audio_in_video=args.use_audio_in_video,
    )


def prompt_options(args: DataArguments) -> PromptOptions:
    """How the arguments say that a sample is put to the model."""
    return PromptOptions(args.instruction, args.system_prompt, args.min_pixels, args.max_pixels)


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
    """The encoder of samples; with a `sam` mask decoder, first makes the embeddings of `samples` that are missing.

    The launched processes share that work, so all of them must call this.

    Args:
        args: how clips are put to the model.
        loaded: the model whose processor and mask decoder are fed.
        samples: all samples that will be encoded.
        is_trainable: whether the model is trained on them: then checkpoints saved from now on tell how they came, and a
            mask decoder that reads embeddings needs the cache; otherwise frames are encoded as they come without it.
        load: reads a sample's media; a `ClipReader` by default.
        frames_are_changed: whether `load` gives other frames than those on disk; these are encoded as they come,
            because the cache, keyed by clip, must neither answer for them nor keep them.
        device: where the frozen image encoder runs.

    Raises:
        ValueError: if training needs an embedding cache and the arguments name none.
    """
    read = load or ClipReader()
    frame_encoder = build_frame_encoder(loaded.segmenter_config)
    if frame_encoder.cacheable:  # the others stay on the CPU, where the workers of a data loader can run them
        frame_encoder.to(device)
    if frame_encoder.cacheable and is_trainable and args.embedding_cache is None:
        raise ValueError("this mask decoder is trained on cached embeddings: set `embedding_cache` to a folder")
    if frame_encoder.cacheable and args.embedding_cache is not None and not frames_are_changed:
        cache = EmbeddingCache(Path(args.embedding_cache), frame_encoder)
        state = PartialState()
        cache.ensure(
            samples,
            lambda sample: read(sample).frames,
            process_index=state.process_index,
            num_processes=state.num_processes,
        )
        state.wait_for_everyone()
        cache.refresh()  # what the other processes have written

        uses_gpu = False

        def frame_inputs(sample: AVSample, clip: AVClip) -> torch.Tensor:
            return cache.get(sample.media_id)
    else:
        uses_gpu = frame_encoder.cacheable and torch.device(device).type != "cpu"

        def frame_inputs(sample: AVSample, clip: AVClip) -> torch.Tensor:
            return frame_encoder.encode(clip.frames).cpu()

    options = prompt_options(args)
    if is_trainable and samples:
        loaded.remember_clips(ClipOptions.of_samples(samples, options))
    encode = SampleEncoder(loaded.family, loaded.processor, frame_inputs, options=options, load=read, uses_gpu=uses_gpu)
    encode.check(samples)
    return encode
