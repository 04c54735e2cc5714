"""Qwens that see, of a few hundred thousand random weights, with the real processor classes and file layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from aurora_rl.models.head_tokens import ensure_head_token, suppress_tokens
from aurora_rl.models.heads import head_class
from aurora_rl.models.mllm.tiny_tokenizer import chat_template, train_tokenizer

if TYPE_CHECKING:
    from aurora_rl.models.mllm.base import MLLMFamily
    from aurora_rl.models.mllm.qwen2_5_vl import Qwen2_5VLFamily

# Attribute of the tokenizer -> token; both are those of Qwen's tokenizers.
MEDIA_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
}
MEDIA_TOKEN_FIELDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


@dataclasses.dataclass(frozen=True)
class TinyVLConfig:
    """Sizes of a tiny model.

    Attributes:
        hidden_size: width of the language model.
        num_layers: depth of the language model.
        num_heads: attention heads of the language model, 16 wide each.
        tower_size: width of the vision tower.
        tower_layers: depth of the vision tower.
        patch_size: pixels on a side of a vision patch.
        rope_theta: base of the rotary frequencies; the published one is too large for tiny grids.
        max_vocab_size: upper limit of the byte-pair vocabulary before added tokens.
        initializer_range: standard deviation of the random weights.
        seed: seed of the random weights.
    """

    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 4
    tower_size: int = 32
    tower_layers: int = 2
    patch_size: int = 8
    rope_theta: float = 10.0
    max_vocab_size: int = 2000
    initializer_range: float = 0.02
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class TinyParts:
    """Classes of a family, and the fields of its configs that differ from those of its siblings.

    Attributes:
        config_class: class of the whole model's config.
        processor_class: class of the processor.
        video_processor_class: class of its part for videos.
        text: further fields of the language model's config.
        vision: further fields of the vision tower's config.
        rope: further fields of the rotary positions.
    """

    config_class: type[PretrainedConfig]
    processor_class: type[ProcessorMixin]
    video_processor_class: type
    text: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    vision: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rope: Mapping[str, Any] = dataclasses.field(default_factory=dict)


QWEN2_5_VL = TinyParts(
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLVideoProcessor,
    vision={"fullatt_block_indexes": [1], "window_size": 64, "tokens_per_second": 2},
)


def vl_sizes(sizes: Mapping[str, Any] | None) -> TinyVLConfig:
    """Return the sizes of a tiny model; a ValueError names one that there is not."""
    names = [field.name for field in dataclasses.fields(TinyVLConfig)]
    if unknown := sorted(set(sizes or {}) - set(names)):
        raise ValueError(f"a tiny model has no size {unknown[0]!r}: choose from {', '.join(names)}")
    return TinyVLConfig(**(sizes or {}))


def build_tiny(
    family: Qwen2_5VLFamily,
    texts: Iterable[str],
    *,
    segmenter: dict[str, Any] | None,
    heads: dict[str, dict[str, Any]] | None,
    sizes: Mapping[str, Any] | None,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Make a random model and its processor; see `MLLMFamily.build_tiny`."""
    size, parts = vl_sizes(sizes), family.tiny_parts()
    processor = _processor(parts, texts, size)
    config = _config(parts, processor.tokenizer, size)
    return random_model(family, config, processor, segmenter=segmenter, heads=heads, seed=size.seed), processor


def random_model(
    family: MLLMFamily,
    config: Any,
    processor: Any,
    *,
    segmenter: dict[str, Any] | None,
    heads: dict[str, dict[str, Any]] | None,
    seed: int,
) -> PreTrainedModel:
    """Make a model of random weights with its heads, whose tokens the processor's tokenizer gets."""
    tokenizer = processor.tokenizer
    if segmenter is not None:
        config.segmenter = segmenter
    if heads is not None:
        config.heads = heads
    torch.manual_seed(seed)
    model: Any = family.model_class(config)
    for name in model.heads:
        ensure_head_token(tokenizer, config.get_text_config().vocab_size, head_class(name).token)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    suppress_tokens(model.lm_head, family.suppressed_token_ids(processor, config))
    return model


def _processor(parts: TinyParts, texts: Iterable[str], size: TinyVLConfig) -> ProcessorMixin:
    """Make the real processor with a small vocabulary; frames may have any size from one pair of patches up."""
    area = (2 * size.patch_size) ** 2
    vision = {
        "patch_size": size.patch_size,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": area, "longest_edge": 768 * area},
    }
    return parts.processor_class(
        image_processor=Qwen2VLImageProcessor(**vision),
        video_processor=parts.video_processor_class(**vision),
        tokenizer=train_tokenizer(texts, MEDIA_TOKENS, max_vocab_size=size.max_vocab_size),
        chat_template=chat_template(MEDIA_TOKENS),
    )


def _config(parts: TinyParts, tokenizer: Any, size: TinyVLConfig) -> PretrainedConfig:
    text = {**text_fields(tokenizer, size, rope=parts.rope), **parts.text}
    vision = {**vision_fields(size), **parts.vision}
    ids = {field: tokenizer.convert_tokens_to_ids(token) for field, token in MEDIA_TOKEN_FIELDS.items()}
    return parts.config_class(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)


def text_fields(tokenizer: Any, size: TinyVLConfig, *, rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a tiny language model's config."""
    return {
        "vocab_size": (len(tokenizer) + 63) // 64 * 64,
        "hidden_size": size.hidden_size,
        "intermediate_size": 3 * size.hidden_size // 2,
        "num_hidden_layers": size.num_layers,
        "num_attention_heads": size.num_heads,
        "num_key_value_heads": max(1, size.num_heads // 2),
        "head_dim": size.hidden_size // size.num_heads,
        "max_position_embeddings": 32768,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": size.rope_theta,
            "mrope_section": mrope_section(size.hidden_size // size.num_heads),
            **rope,
        },
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": size.initializer_range,
    }


def vision_fields(size: TinyVLConfig) -> dict[str, Any]:
    """Return the fields of a tiny vision tower's config."""
    return {
        "depth": size.tower_layers,
        "hidden_size": size.tower_size,
        "intermediate_size": 2 * size.tower_size,
        "num_heads": 2,
        "patch_size": size.patch_size,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": size.hidden_size,
        "initializer_range": size.initializer_range,
    }


def mrope_section(head_dim: int) -> list[int]:
    """Return how many of a head's frequencies turn by time, height and width."""
    spatial = head_dim // 8
    return [head_dim // 2 - 2 * spatial, spatial, spatial]
