"""The model of a run: this module loads it, and freezes, quantises or adds LoRA as the arguments say."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, is_peft_model
from peft import PeftConfig
from transformers import BitsAndBytesConfig
from transformers.distributed.fsdp import is_fsdp_enabled
from transformers.utils.peft_utils import find_adapter_config_file

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.caches.tower_outputs import TowerCache
from aurora_rl.models.grounding import segmentation_model
from aurora_rl.models.heads import MASK_HEAD, head_attribute, head_fields
from aurora_rl.models.loading import LoadedModel, SegmentationLoraConfig, freeze, load_model, read_family
from aurora_rl.models.mllm import MLLMFamily
from aurora_rl.models.mllm.sharing import TowerSharingMixin
from aurora_rl.models.quantization import four_bit_config

logger = logging.getLogger(__name__)


def assemble_model(args: ModelArguments, *, head: str | None, is_trainable: bool = True) -> LoadedModel:
    """Load the model and freeze what the arguments name.

    Args:
        args: arguments of the model.
        head: name of the head that the task needs; None for none.
        is_trainable: whether the model is loaded for training.

    Raises:
        ValueError: if the model has no such head, or weights of 4 bits would be trained without an adapter.
        ImportError, RuntimeError: if `load_in_4bit` is set without bitsandbytes or without a GPU.
    """
    loaded = load_model(
        args.model,
        family=args.family,
        segmenter=args.segmenter,
        heads=args.heads,
        needs=head,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
        quantization_config=quantization_config(args, is_trainable=is_trainable),
        is_trainable=is_trainable,
    )
    if is_trainable and args.freeze:
        freeze(loaded.model, loaded.family.names_of_parts(args.freeze))
    if args.tower_cache is not None:
        keep_towers_in(args.tower_cache, loaded)
    return loaded


def keep_towers_in(folder: str, loaded: LoadedModel) -> None:
    """Let a model read the outputs of its towers from a folder, and write there what it lacks.

    Raises:
        ValueError: if the outputs are not those of a clip alone, there is nothing to keep, or only the first process
            has loaded weights, by which the towers are known.
    """
    model, name = segmentation_model(loaded.model), type(loaded.family).__name__
    if is_fsdp_enabled():  # transformers' name for FSDP with fsdp_cpu_ram_efficient_loading
        raise ValueError(
            "tower_cache knows towers by their weights, but with fsdp_cpu_ram_efficient_loading only the first process "
            "has loaded them: set it to false, as accelerate_configs/fsdp2.yaml does, or drop tower_cache"
        )
    if not isinstance(model, TowerSharingMixin):
        raise ValueError(
            f"tower_cache: the model of {name} gives clips to rows by itself, so that the outputs of its towers are "
            "not known to be those of a clip alone: drop tower_cache, or build the model on MLLMMixin"
        )
    if loaded.family.tower_cache_refusal is not None:
        raise ValueError(f"tower_cache: {name} {loaded.family.tower_cache_refusal}: drop tower_cache")
    model.tower_cache = TowerCache.of_model(folder, model)


def quantization_config(args: ModelArguments, *, is_trainable: bool = True) -> BitsAndBytesConfig | None:
    """Return the config of 4-bit weights, if `load_in_4bit` is set; they cannot be trained, so need an adapter."""
    if not args.load_in_4bit:
        return None
    if is_trainable and not args.use_peft and find_adapter_config_file(args.model) is None:
        raise ValueError(
            "load_in_4bit: weights of 4 bits cannot be trained; set use_peft to true, or load_in_4bit to false"
        )
    return four_bit_config(read_family(args.model, args.family))


def peft_config(args: ModelArguments, loaded: LoadedModel) -> PeftConfig | None:
    """Return LoRA on the decoder's projections; None if the whole model is trained or an adapter is loaded already.

    Raises:
        ValueError: if `lora_modules_to_save` names a module that the model lacks.
    """
    if not args.use_peft or is_peft_model(loaded.model):
        return None
    _warn_of_rounded_updates(args, loaded)
    config = lora_config(args, loaded.family, loaded.heads)
    _check_saved_modules(config, loaded)
    config.clip_options = getattr(loaded.model.config, "clip_options", None)
    return config


def lora_config(
    args: ModelArguments, family: MLLMFamily, heads: Mapping[str, dict[str, Any]]
) -> SegmentationLoraConfig:
    """Return LoRA by the arguments, for a family of models, with the config of each head.

    `seg_head` among the modules to save stands for all heads that the model has, so that the default fits any model.
    """
    saved = [name for name in args.lora_modules_to_save if name != MASK_HEAD]
    if MASK_HEAD in args.lora_modules_to_save:
        saved = [*map(head_attribute, heads), *saved]
    return SegmentationLoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=family.lora_target_modules,
        exclude_modules=_outside_decoder(family, heads),
        modules_to_save=list(dict.fromkeys(saved)),
        task_type="CAUSAL_LM",
        **head_fields(heads),
    )


def _outside_decoder(family: MLLMFamily, heads: Iterable[str]) -> str:
    """Return a regular expression of the modules that have no LoRA: towers and heads, with all inside them.

    For models with experts PEFT replaces our regular expression by the last names of the modules that it matches, such
    as q_proj, which the audio tower and SAM's decoder have too.
    """
    names = "|".join(map(re.escape, (*family.tower_names, *map(head_attribute, heads))))
    return rf"(.*\.)?({names})(\..*)?"


def _check_saved_modules(config: SegmentationLoraConfig, loaded: LoadedModel) -> None:
    """Raise a ValueError for a module to save that the model lacks; PEFT would leave it out without a word."""
    names = {name.rpartition(".")[2] for name, _ in loaded.model.named_modules()}
    missing = sorted(set(config.modules_to_save or ()) - names)
    if missing:
        raise ValueError(
            f"lora_modules_to_save names {missing}, which the model lacks: leave them out, or use names of its modules"
        )


def _warn_of_rounded_updates(args: ModelArguments, loaded: LoadedModel) -> None:
    """Warn about modules trained in half precision: only PEFT's adapters and DeepSpeed's copies are float32."""
    rounded = sorted(set(args.lora_modules_to_save) - {MASK_HEAD, *map(head_attribute, loaded.heads)})
    is_half = loaded.model.dtype in (torch.bfloat16, torch.float16)
    if rounded and is_half and PartialState().distributed_type != DistributedType.DEEPSPEED:
        logger.warning(
            "%s are trained in %s without DeepSpeed's float32 copies: small updates are rounded away. Launch with "
            "accelerate_configs/zero2.yaml, or set dtype to float32",
            " and ".join(rounded),
            loaded.model.dtype,
        )
