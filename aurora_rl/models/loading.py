"""From a hub name, a full Omni checkpoint, a trained thinker or a LoRA adapter to a model with a segmentation head.

Loading reads safetensors only and never runs a repository's code.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoProcessor, PretrainedConfig, PreTrainedModel, ProcessorMixin

from aurora_rl.models.mllm import MLLMFamily, get_family
from aurora_rl.models.seg_tokens import ensure_seg_token, init_seg_embedding, suppress_tokens
from aurora_rl.prompts import SEG_TOKEN

logger = logging.getLogger(__name__)

#: File by which PEFT marks a directory as an adapter.
ADAPTER_CONFIG = "adapter_config.json"


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model with everything it needs to be fed.

    Attributes:
        model: the MLLM with its segmentation head, wrapped by PEFT where an adapter was loaded.
        processor: its processor, `[SEG]` included.
        family: how the model is fed.
        seg_token_id: id of `[SEG]`.
    """

    model: PreTrainedModel | PeftModel
    processor: ProcessorMixin
    family: MLLMFamily
    seg_token_id: int

    @property
    def segmenter_config(self) -> dict[str, Any]:
        return self.model.config.segmenter


def load_model(
    name_or_path: str,
    *,
    segmenter: dict[str, Any] | None = None,
    dtype: torch.dtype | str = "auto",
    attn_implementation: str | None = None,
    is_trainable: bool = True,
) -> LoadedModel:
    """Load a checkpoint for training or inference.

    Args:
        name_or_path: hub name or directory: a plain MLLM, a model saved by Aurora-RL, or a LoRA adapter of one.
        segmenter: config of the mask decoder to start with; a checkpoint that has been trained knows its own.
        dtype: of the weights.
        attn_implementation: as in transformers.
        is_trainable: whether a LoRA adapter is loaded for further training.

    Raises:
        ValueError: if a plain MLLM is loaded without `segmenter`, or a trained one with another than its own.
    """
    if _is_adapter(name_or_path):
        base = json.loads((Path(name_or_path) / ADAPTER_CONFIG).read_text())["base_model_name_or_path"]
        loaded = load_model(base, segmenter=segmenter, dtype=dtype, attn_implementation=attn_implementation)
        model = PeftModel.from_pretrained(loaded.model, name_or_path, is_trainable=is_trainable)
        return dataclasses.replace(loaded, model=model)

    config_dict, _ = PretrainedConfig.get_config_dict(name_or_path)
    family = get_family(config_dict["model_type"])
    config = _segmentation_config(family, name_or_path, segmenter)
    is_new = "segmenter" not in _thinker_dict(config_dict)
    model = family.model_class.from_pretrained(
        name_or_path, config=config, dtype=dtype, attn_implementation=attn_implementation, use_safetensors=True
    )
    processor = AutoProcessor.from_pretrained(name_or_path)
    seg_token_id = prepare_vocabulary(model, processor, family)
    if is_new:
        _start_from_pretrained_decoder(model)
    return LoadedModel(model, processor, family, seg_token_id)


def prepare_vocabulary(model: PreTrainedModel, processor: ProcessorMixin, family: MLLMFamily) -> int:
    """Make `[SEG]` part of the tokenizer and multimodal tokens impossible to sample; returns the id of `[SEG]`."""
    tokenizer = processor.tokenizer
    is_new, num_tokens = SEG_TOKEN not in tokenizer.get_vocab(), len(tokenizer)
    seg_token_id = ensure_seg_token(tokenizer, model.get_input_embeddings().weight.size(0))
    if is_new:
        init_seg_embedding(model, seg_token_id, num_tokens=num_tokens)
    suppress_tokens(model.get_output_embeddings(), family.multimodal_token_ids(model.config))
    return seg_token_id


def freeze(model: torch.nn.Module, names: list[str]) -> None:
    """Switch gradients off in the sub-modules whose dotted name starts with, or holds as a part, one of `names`.

    Raises:
        ValueError: if a name matches no parameter.
    """
    for name in names:
        hits = [p for key, p in model.named_parameters() if f".{name}." in f".{key}."]
        if not hits:
            raise ValueError(f"nothing to freeze is named {name!r}: use names as in model.named_parameters()")
        for parameter in hits:
            parameter.requires_grad_(False)


def _is_adapter(name_or_path: str) -> bool:
    return (Path(name_or_path) / ADAPTER_CONFIG).is_file()


def _thinker_dict(config_dict: dict[str, Any]) -> dict[str, Any]:
    return config_dict.get("thinker_config", config_dict)


def _segmentation_config(family: MLLMFamily, name_or_path: str, segmenter: dict[str, Any] | None) -> PretrainedConfig:
    config = family.config_from(_auto_config(family, name_or_path))
    own = getattr(config, "segmenter", None)
    if own is None and segmenter is None:
        raise ValueError(f"{name_or_path} has no mask decoder yet: give `segmenter`, for example {{'type': 'sam', ...}}")
    if own is not None and any(own.get(key) != value for key, value in (segmenter or {}).items()):
        raise ValueError(f"{name_or_path} was trained with the mask decoder {own}, but {segmenter} is asked for: drop it")
    config.segmenter = own or segmenter
    return config


def _auto_config(family: MLLMFamily, name_or_path: str) -> PretrainedConfig:
    return family.model_class.config_class.from_pretrained(name_or_path)


def _start_from_pretrained_decoder(model: PreTrainedModel) -> None:
    """Load the pretrained mask decoder that the segmenter's config names, if it names one."""
    decoder = model.seg_head.mask_decoder
    if hasattr(decoder, "load_pretrained"):
        decoder.load_pretrained()
