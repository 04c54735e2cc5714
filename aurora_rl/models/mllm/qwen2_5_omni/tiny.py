"""A Qwen2.5-Omni of a few hundred thousand random weights, with the real processor classes and file layout.

Tests use it, and so does the demo, which trains it from scratch on a CPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    WhisperFeatureExtractor,
)

from aurora_rl.models.head_tokens import ensure_head_token, suppress_tokens
from aurora_rl.models.heads import head_class
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from aurora_rl.models.mllm.qwen2_5_omni.model import AuroraQwen2_5Omni
from aurora_rl.models.mllm.tiny_tokenizer import chat_template, train_tokenizer

# Attribute of the tokenizer -> token; both are those of Qwen2.5-Omni's tokenizer.
MULTIMODAL_TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}


@dataclasses.dataclass(frozen=True)
class TinyOmniConfig:
    """Sizes of a tiny Qwen2.5-Omni.

    Attributes:
        hidden_size: width of the language model.
        num_layers: depth of the language model.
        num_heads: attention heads of the language model.
        tower_size: width of the vision and audio towers.
        tower_layers: depth of each tower.
        tower_heads: attention heads of each tower.
        patch_size: pixels on a side of a vision patch.
        num_mel_bins: rows of the spectrogram.
        hop_length: samples between spectrogram columns; 4 columns make one audio token.
        rope_theta: base of the rotary frequencies. On tiny grids the published 1e6 leaves the width axis with
            frequencies too low to tell left from right.
        max_vocab_size: upper limit of the byte-pair vocabulary before added tokens.
        min_vocab_size: lower limit of the vocabulary, which is filled with words that occur in no text.
        initializer_range: standard deviation of the random weights. The published 0.02 suits widths of thousands.
        audio_window: half the spectrogram columns that attend to each other in the audio tower.
        seed: seed of the random weights.
    """

    hidden_size: int = 64
    num_layers: int = 4
    num_heads: int = 4
    tower_size: int = 48
    tower_layers: int = 1
    tower_heads: int = 4
    patch_size: int = 8
    num_mel_bins: int = 32
    hop_length: int = 320
    rope_theta: float = 10.0
    max_vocab_size: int = 2000
    min_vocab_size: int = 0
    initializer_range: float = 0.02
    audio_window: int = 50
    seed: int = 0


def build_tiny_omni(
    texts: Iterable[str],
    segmenter: dict[str, Any] | None,
    config: TinyOmniConfig | None = None,
    *,
    heads: dict[str, dict[str, Any]] | None = None,
) -> tuple[AuroraQwen2_5Omni, Qwen2_5OmniProcessor]:
    """Make a random model and its processor.

    Args:
        texts: texts that the byte-pair vocabulary is trained on; frequent words become single tokens.
        segmenter: the mask decoder's config, see `aurora_rl.models.heads.segmenters`; None for a model without one.
        config: the model's sizes.
        heads: configs of other heads by name.
    """
    config = config or TinyOmniConfig()
    processor = build_tiny_processor(texts, config)
    torch.manual_seed(config.seed)
    thinker_config = _thinker_config(processor.tokenizer, config)
    tokenizer = processor.tokenizer
    if segmenter is not None:
        thinker_config.segmenter = segmenter
    if heads is not None:
        thinker_config.heads = heads
    model = AuroraQwen2_5Omni(thinker_config)
    for name in model.heads:
        ensure_head_token(tokenizer, thinker_config.text_config.vocab_size, head_class(name).token)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    suppress_tokens(model.lm_head, Qwen2_5OmniFamily().suppressed_token_ids(processor, thinker_config))
    return model, processor


def build_tiny_processor(texts: Iterable[str], config: TinyOmniConfig) -> Qwen2_5OmniProcessor:
    """Make the real processor with a small vocabulary; frames may have any size from one pair of patches up."""
    factor = 2 * config.patch_size
    size = {"shortest_edge": factor**2, "longest_edge": 768 * factor**2}
    vision = {"patch_size": config.patch_size, "size": size}
    return Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(**vision),
        video_processor=Qwen2VLVideoProcessor(**vision),
        feature_extractor=WhisperFeatureExtractor(
            feature_size=config.num_mel_bins, hop_length=config.hop_length, chunk_length=30, return_attention_mask=True
        ),
        tokenizer=train_tokenizer(
            texts, MULTIMODAL_TOKENS, max_vocab_size=config.max_vocab_size, min_vocab_size=config.min_vocab_size
        ),
        chat_template=chat_template(MULTIMODAL_TOKENS),
    )


def multimodal_token_fields(tokenizer: Qwen2Tokenizer) -> dict[str, int]:
    """Return the fields of a thinker's config that hold the ids of the tokenizer's multimodal tokens."""
    token_id = tokenizer.convert_tokens_to_ids
    return {
        "audio_token_index": token_id("<|AUDIO|>"),
        "image_token_index": token_id("<|IMAGE|>"),
        "video_token_index": token_id("<|VIDEO|>"),
        "audio_start_token_id": token_id("<|audio_bos|>"),
        "audio_end_token_id": token_id("<|audio_eos|>"),
        "vision_start_token_id": token_id("<|vision_bos|>"),
        "vision_end_token_id": token_id("<|vision_eos|>"),
    }


def _thinker_config(tokenizer: Qwen2Tokenizer, config: TinyOmniConfig) -> Qwen2_5OmniThinkerConfig:
    token_id = tokenizer.convert_tokens_to_ids
    head_dim = config.hidden_size // config.num_heads
    spatial = 3 * head_dim // 16
    init = {"initializer_range": config.initializer_range}
    heads = {"num_attention_heads": config.num_heads, "num_key_value_heads": config.num_heads}
    return Qwen2_5OmniThinkerConfig(
        text_config={
            "vocab_size": (len(tokenizer) + 63) // 64 * 64,
            "hidden_size": config.hidden_size,
            "intermediate_size": 3 * config.hidden_size,
            "num_hidden_layers": config.num_layers,
            **heads,
            **init,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": config.rope_theta,
                "mrope_section": [head_dim // 2 - 2 * spatial, spatial, spatial],
            },
            "max_position_embeddings": 32768,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            **init,
            "depth": config.tower_layers,
            "hidden_size": config.tower_size,
            "intermediate_size": 2 * config.tower_size,
            "num_heads": config.tower_heads,
            "out_hidden_size": config.hidden_size,
            "fullatt_block_indexes": list(range(config.tower_layers)),
            "patch_size": config.patch_size,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 8 * config.patch_size,
        },
        audio_config={
            **init,
            "num_mel_bins": config.num_mel_bins,
            "encoder_layers": config.tower_layers,
            "encoder_attention_heads": config.tower_heads,
            "encoder_ffn_dim": 2 * config.tower_size,
            "d_model": config.tower_size,
            "output_dim": config.hidden_size,
            "n_window": config.audio_window,
            "max_source_positions": 1500,
        },
        **multimodal_token_fields(tokenizer),
        user_token_id=token_id("user"),
        **init,
    )
