"""An Audio Flamingo 3 of a few hundred thousand random weights, with the real processor classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3Processor,
    PreTrainedModel,
    ProcessorMixin,
    WhisperFeatureExtractor,
)

from aurora_rl.models.mllm.qwen2_5_vl.tiny import random_model, text_fields, vl_sizes
from aurora_rl.models.mllm.tiny_tokenizer import chat_template, train_tokenizer

if TYPE_CHECKING:
    from aurora_rl.models.mllm.audioflamingo3 import AudioFlamingo3Family

SOUND_TOKENS = {"audio_token": "<sound>"}
NUM_MEL_BINS = 32


def build_tiny(
    family: AudioFlamingo3Family,
    texts: Iterable[str],
    *,
    segmenter: dict[str, Any] | None = None,
    heads: dict[str, dict[str, Any]] | None = None,
    sizes: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Make a random model and its processor; see `MLLMFamily.build_tiny`."""
    size = vl_sizes(sizes)
    tokenizer = train_tokenizer(texts, SOUND_TOKENS, max_vocab_size=size.max_vocab_size)
    # Windows are of 3,000 columns, so a tiny model of windows of another length would not be like the real one.
    extractor = WhisperFeatureExtractor(feature_size=NUM_MEL_BINS, return_attention_mask=True)
    processor: Any = AudioFlamingo3Processor(extractor, tokenizer, chat_template=chat_template(SOUND_TOKENS))
    text = text_fields(tokenizer, size, rope={}) | {"model_type": "qwen2"}
    text["rope_parameters"].pop("mrope_section")
    audio = {
        "num_mel_bins": NUM_MEL_BINS,
        "num_hidden_layers": size.tower_layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * size.tower_size,
        "hidden_size": size.tower_size,
        "initializer_range": size.initializer_range,
    }
    config = AudioFlamingo3Config(
        text_config=text, audio_config=audio, audio_token_id=tokenizer.convert_tokens_to_ids("<sound>")
    )
    return random_model(family, config, processor, segmenter=segmenter, heads=heads, seed=size.seed), processor
