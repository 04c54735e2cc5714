"""From arguments to objects: the model, its encoder and the splits, put together the same way by every recipe."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import DistributedType, is_peft_model
from peft import PeftConfig
from transformers import BitsAndBytesConfig
from transformers.utils.peft_utils import find_adapter_config_file

from aurora_rl.config import DataArguments, ModelArguments, TargetArguments
from aurora_rl.data import hf_dataset, ref_avs
from aurora_rl.data.avsbench import load_avsbench_avss, load_avsbench_ms3, load_avsbench_s4
from aurora_rl.data.chains import add_reflections
from aurora_rl.data.clip_reader import ClipReader
from aurora_rl.data.draw import draw_over_clips
from aurora_rl.data.files import DatasetError
from aurora_rl.data.hf_dataset import load_hf_dataset
from aurora_rl.data.omni_avs import load_omni_avs
from aurora_rl.data.ref_avs import find_test_splits, load_ref_avs
from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.data.targets import TARGETS, Target
from aurora_rl.models.batch import PromptOptions, SampleEncoder
from aurora_rl.models.clip_options import ClipOptions
from aurora_rl.models.embedding_cache import EmbeddingCache
from aurora_rl.models.loading import LoadedModel, SegmentationLoraConfig, freeze, load_model
from aurora_rl.models.mllm import MLLMFamily
from aurora_rl.models.quantization import four_bit_config
from aurora_rl.models.segmenters import build_frame_encoder
from aurora_rl.models.sharding import loading_whole
from aurora_rl.models.teacher import Teacher, teacher_fingerprint
from aurora_rl.models.teacher_features import TeacherFeatures
from aurora_rl.plain_files import read_text_file
from aurora_rl.prompts import NULL_CATEGORY

logger = logging.getLogger(__name__)


def assemble_model(args: ModelArguments, *, is_trainable: bool = True) -> LoadedModel:
    """Load the model and freeze what the arguments name.

    Raises:
        ValueError: if weights of 4 bits would be trained without an adapter.
        ImportError, RuntimeError: if 4 bits are asked for without bitsandbytes or without a GPU.
    """
    loaded = load_model(
        args.model,
        segmenter=args.segmenter,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
        quantization_config=quantization_config(args, is_trainable=is_trainable),
        is_trainable=is_trainable,
    )
    if is_trainable and args.freeze:
        freeze(loaded.model, args.freeze)
    return loaded


def quantization_config(args: ModelArguments, *, is_trainable: bool = True) -> BitsAndBytesConfig | None:
    """4 bits a weight where the arguments ask for it, and only below an adapter: such weights cannot be trained."""
    if not args.load_in_4bit:
        return None
    if is_trainable and not args.use_peft and find_adapter_config_file(args.model) is None:
        raise ValueError(
            "load_in_4bit: weights of 4 bits cannot be trained; set use_peft to true, or load_in_4bit to false"
        )
    return four_bit_config()


def peft_config(args: ModelArguments, loaded: LoadedModel) -> PeftConfig | None:
    """LoRA on the decoder's projections; None where the whole model is trained or an adapter is loaded already."""
    if not args.use_peft or is_peft_model(loaded.model):
        return None
    _warn_of_rounded_updates(args, loaded)
    config = lora_config(args, loaded.family, loaded.segmenter_config)
    config.clip_options = getattr(loaded.model.config, "clip_options", None)
    return config


def lora_config(args: ModelArguments, family: MLLMFamily, segmenter: dict[str, Any]) -> SegmentationLoraConfig:
    """LoRA as the arguments describe it, for a family of models and with this mask decoder beside it."""
    return SegmentationLoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=family.lora_target_modules,
        modules_to_save=args.lora_modules_to_save,
        task_type="CAUSAL_LM",
        segmenter=segmenter,
    )


def _warn_of_rounded_updates(args: ModelArguments, loaded: LoadedModel) -> None:
    """PEFT keeps adapters in float32, and DeepSpeed copies of all that is trained; the rest stays as it was loaded."""
    rounded = sorted(set(args.lora_modules_to_save) - {"seg_head"})
    is_half = loaded.model.dtype in (torch.bfloat16, torch.float16)
    if rounded and is_half and PartialState().distributed_type != DistributedType.DEEPSPEED:
        logger.warning(
            "%s are trained in %s without DeepSpeed's float32 copies: small updates are rounded away. Launch with "
            "accelerate_configs/zero2.yaml, or set dtype to float32",
            " and ".join(rounded),
            loaded.model.dtype,
        )


def load_split(args: DataArguments, split: str) -> list[AVSample]:
    """The samples of one split, with their chains of thought where the arguments name a file of them.

    Raises:
        ValueError: if the benchmark is unknown, or `mask_cache` or `media_cache` is missing where it needs one.
    """
    if args.benchmark not in LOADERS:
        raise ValueError(f"unknown benchmark {args.benchmark!r}: choose from {', '.join(LOADERS)}")
    chains = None if args.chains is None else Path(args.data_root) / args.chains
    samples = LOADERS[args.benchmark](args, split, chains)
    if args.reflections is not None:
        samples = add_reflections(samples, args.reflections)
    if args.use_audio_in_video:
        samples = [dataclasses.replace(sample, use_audio_in_video=True) for sample in samples]
    return samples


def _load_ref_avs(args: DataArguments, split: str, chains: Path | None) -> list[AVSample]:
    return load_ref_avs(args.data_root, split, fps=args.fps, num_frames=args.num_frames, chains=chains)


def _load_omni_avs(args: DataArguments, split: str, chains: Path | None) -> list[AVSample]:
    if args.mask_cache is None:
        raise ValueError("OmniAVS keeps its masks as run lengths: set `mask_cache` to a folder for them as PNG files")
    return load_omni_avs(args.data_root, split, mask_cache=args.mask_cache, num_frames=args.num_frames, chains=chains)


def _load_hf_dataset(args: DataArguments, split: str, chains: Path | None) -> list[AVSample]:
    if args.media_cache is None:
        raise ValueError("hf_dataset keeps its media inside tables: set `media_cache` to a folder to unpack them into")
    if chains is not None:
        raise ValueError(f"the rows of hf_dataset hold their chains of thought: drop `chains` ({chains})")
    return load_hf_dataset(args.data_root, split, media_cache=args.media_cache)


LOADERS: dict[str, Callable[[DataArguments, str, Path | None], list[AVSample]]] = {
    "ref_avs": _load_ref_avs,
    "avsbench_s4": lambda args, split, chains: load_avsbench_s4(args.data_root, split, chains=chains),
    "avsbench_ms3": lambda args, split, chains: load_avsbench_ms3(args.data_root, split, chains=chains),
    "avsbench_avss": lambda args, split, chains: load_avsbench_avss(args.data_root, split, chains=chains),
    "omni_avs": _load_omni_avs,
    "hf_dataset": _load_hf_dataset,
}


def list_test_splits(args: DataArguments) -> list[str]:
    """The splits that are scored where none is named: all whose name begins with "test".

    Raises:
        DatasetError: if there are none.
    """
    # Of the other benchmarks it is one; where a dataset has another, its loader names those that are there.
    return find_test_splits(args.data_root) if args.benchmark == "ref_avs" else ["test"]


def find_train_categories(args: DataArguments) -> set[str]:
    """Categories of the training split, which tell the new from the seen ones in an unseen split; no media are read.

    Empty where the benchmark has no unseen split, or no training split beside it.
    """
    if args.benchmark not in CATEGORY_READERS:
        return set()
    try:
        return CATEGORY_READERS[args.benchmark](args.data_root, args.train_split) - {NULL_CATEGORY}
    except DatasetError as error:
        logger.info("new and seen categories are not told apart: %s", error)
        return set()


CATEGORY_READERS: dict[str, Callable[[str, str], set[str]]] = {
    "ref_avs": ref_avs.read_categories,
    "hf_dataset": hf_dataset.read_categories,
}


def load_training_splits(args: DataArguments) -> tuple[list[AVSample], list[AVSample]]:
    """The samples to train on, and those to evaluate on while training: none where the arguments name no split.

    Raises:
        ValueError: as `load_split` and `draw_over_clips`.
    """
    train_samples = load_split(args, args.train_split)
    eval_samples = load_split(args, args.eval_split) if args.eval_split else []
    # The checkpoint that is kept as the best one is chosen on these.
    return train_samples, draw_over_clips(eval_samples, args.max_eval_samples, seed=args.eval_samples_seed)


def assemble_target(args: TargetArguments) -> Callable[[AVSample], Target]:
    """What a row is trained to say.

    Raises:
        ValueError: if the target is unknown.
    """
    if args.target not in TARGETS:
        raise ValueError(f"unknown target {args.target!r}: choose from {', '.join(TARGETS)}")
    return TARGETS[args.target]


def assemble_teacher(args: TargetArguments, model_args: ModelArguments, data_args: DataArguments) -> Teacher:
    """The distillation's teacher, whole on every process, fed as the student is but for its instruction.

    Raises:
        ValueError: if the arguments name none.
    """
    with loading_whole():
        loaded = load_model(_teacher_name(args), dtype=model_args.dtype, is_trainable=False)
    return Teacher(loaded, _teacher_encoder(args, data_args, loaded))


def stored_features(
    args: TargetArguments,
    model_args: ModelArguments,
    data_args: DataArguments,
    samples: list[AVSample],
    *,
    device: torch.device | str = "cpu",
) -> TeacherFeatures:
    """The features of all samples from the arguments' file, after those that are missing have been computed.

    The launched processes share that work, so all of them must call this. The teacher is loaded only for it.

    Raises:
        ValueError: if the file belongs to another teacher.
    """
    assert args.teacher_features is not None
    options = _teacher_options(args, data_args)
    fingerprint = teacher_fingerprint(_teacher_name(args), options, dtype=model_args.dtype)
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
    options = _prompt_options(data_args)
    return dataclasses.replace(options, instruction=args.teacher_instruction or options.instruction)


def _teacher_encoder(args: TargetArguments, data_args: DataArguments, loaded: LoadedModel) -> SampleEncoder:
    def no_frames(sample: AVSample, clip: AVClip) -> torch.Tensor:
        return torch.zeros(len(clip.frames), 1)  # its mask decoder does not run

    return SampleEncoder(loaded.family, loaded.processor, no_frames, options=_teacher_options(args, data_args))


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
        prompt=_prompt_options(args),
        fps=args.fps,
        num_frames=args.num_frames or ClipOptions.num_frames,
        use_audio_in_video=args.use_audio_in_video,
    )


def _prompt_options(args: DataArguments) -> PromptOptions:
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

    options = _prompt_options(args)
    if is_trainable and samples:
        loaded.remember_clips(ClipOptions.of_samples(samples, options))
    encode = SampleEncoder(loaded.family, loaded.processor, frame_inputs, options=options, load=read, uses_gpu=uses_gpu)
    encode.check(samples)
    return encode
