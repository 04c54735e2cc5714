"""The model of a run: this module loads it, and freezes, quantises or adds LoRA as the arguments say."""

from __future__ import annotations

import logging
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, is_peft_model
from peft import PeftConfig
from transformers import BitsAndBytesConfig
from transformers.utils.peft_utils import find_adapter_config_file

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.models.loading import LoadedModel, SegmentationLoraConfig, freeze, load_model, read_family
from aurora_rl.models.mllm import MLLMFamily
from aurora_rl.models.quantization import four_bit_config

logger = logging.getLogger(__name__)


def assemble_model(args: ModelArguments, *, is_trainable: bool = True) -> LoadedModel:
    """Load the model and freeze what the arguments name.

    Raises:
        ValueError: if weights of 4 bits would be trained without an adapter.
        ImportError, RuntimeError: if `load_in_4bit` is set without bitsandbytes or without a GPU.
    """
    loaded = load_model(
        args.model,
        family=args.family,
        segmenter=args.segmenter,
        needs="masks",
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
        quantization_config=quantization_config(args, is_trainable=is_trainable),
        is_trainable=is_trainable,
    )
    if is_trainable and args.freeze:
        freeze(loaded.model, loaded.family.names_of_parts(args.freeze))
    return loaded


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
    """Return LoRA on the decoder's projections; None if the whole model is trained or an adapter is loaded already."""
    if not args.use_peft or is_peft_model(loaded.model):
        return None
    _warn_of_rounded_updates(args, loaded)
    config = lora_config(args, loaded.family, loaded.segmenter_config)
    config.clip_options = getattr(loaded.model.config, "clip_options", None)
    return config


def lora_config(args: ModelArguments, family: MLLMFamily, segmenter: dict[str, Any]) -> SegmentationLoraConfig:
    """Return LoRA by the arguments, for a family of models, with the config of the mask decoder."""
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
    """Warn about modules trained in half precision: only PEFT's adapters and DeepSpeed's copies are float32."""
    rounded = sorted(set(args.lora_modules_to_save) - {"seg_head"})
    is_half = loaded.model.dtype in (torch.bfloat16, torch.float16)
    if rounded and is_half and PartialState().distributed_type != DistributedType.DEEPSPEED:
        logger.warning(
            "%s are trained in %s without DeepSpeed's float32 copies: small updates are rounded away. Launch with "
            "accelerate_configs/zero2.yaml, or set dtype to float32",
            " and ".join(rounded),
            loaded.model.dtype,
        )
