"""A Qwen3-Omni of a few hundred thousand random weights, with the real processor classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3OmniMoeProcessor,
    WhisperFeatureExtractor,
)
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeThinkerConfig

from aurora_rl.models.mllm.qwen2_5_vl.tiny import (
    MEDIA_TOKEN_FIELDS,
    MEDIA_TOKENS,
    random_model,
    text_fields,
    vision_fields,
    vl_sizes,
)
from aurora_rl.models.mllm.qwen3_vl_moe.tiny import EXPERTS
from aurora_rl.models.mllm.tiny_tokenizer import chat_template, train_tokenizer

if TYPE_CHECKING:
    from aurora_rl.models.mllm.qwen2_5_vl.tiny import TinyVLConfig
    from aurora_rl.models.mllm.qwen3_omni import Qwen3OmniFamily

SOUND_TOKENS = {
    "audio_token": "<|audio_pad|>",
    "audio_bos_token": "<|audio_start|>",
    "audio_eos_token": "<|audio_end|>",
}
SOUND_TOKEN_FIELDS = {
    "audio_token_id": "<|audio_pad|>",
    "audio_start_token_id": "<|audio_start|>",
    "audio_end_token_id": "<|audio_end|>",
}
NUM_MEL_BINS = 32


def build_tiny(
    family: Qwen3OmniFamily,
    texts: Iterable[str],
    *,
    segmenter: dict[str, Any] | None = None,
    heads: dict[str, dict[str, Any]] | None = None,
    sizes: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Make a random model and its processor; see `MLLMFamily.build_tiny`."""
    size = vl_sizes(sizes)
    processor: Any = _processor(texts, size)
    config = _config(processor.tokenizer, size)
    return random_model(family, config, processor, segmenter=segmenter, heads=heads, seed=size.seed), processor


def _processor(texts: Iterable[str], size: TinyVLConfig) -> ProcessorMixin:
    area = (2 * size.patch_size) ** 2
    vision = {"patch_size": size.patch_size, "size": {"shortest_edge": area, "longest_edge": 768 * area}}
    tokens = MEDIA_TOKENS | SOUND_TOKENS
    return Qwen3OmniMoeProcessor(
        Qwen2VLImageProcessor(**vision),
        Qwen2VLVideoProcessor(**vision),
        WhisperFeatureExtractor(feature_size=NUM_MEL_BINS, hop_length=160, chunk_length=30, return_attention_mask=True),
        train_tokenizer(texts, tokens, max_vocab_size=size.max_vocab_size),
        chat_template=chat_template(tokens),
    )


def _config(tokenizer: Any, size: TinyVLConfig) -> PretrainedConfig:
    # The hub's config has `tie_word_embeddings`, which the class of transformers does not declare.
    text = text_fields(tokenizer, size, rope={"mrope_interleaved": True}) | EXPERTS
    vision = vision_fields(size) | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    vision |= {"image_size": 8 * size.patch_size, "apply_vit_abs_pos_embed": True}  # as in the hub's config, for vLLM
    audio = {
        "num_mel_bins": NUM_MEL_BINS,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "d_model": 32,
        "output_dim": size.hidden_size,
        "n_window": 50,
        "n_window_infer": 400,
        "conv_chunksize": 500,
        "downsample_hidden_size": 8,
        "initializer_range": size.initializer_range,
    }
    fields = MEDIA_TOKEN_FIELDS | SOUND_TOKEN_FIELDS | {"user_token_id": "user"}
    ids = {field: tokenizer.convert_tokens_to_ids(token) for field, token in fields.items()}
    return Qwen3OmniMoeThinkerConfig(
        text_config=text, vision_config=vision, audio_config=audio, position_id_per_seconds=13, **ids
    )
