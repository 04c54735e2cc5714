"""Gemmas of a few hundred thousand random weights, with the real processor classes and file layout.

Their vocabulary is like the published one: it begins every sequence with `<bos>`, writes unknown characters as bytes,
keeps some tokens in reserve, and has a row in the embedding matrix for each token and no more.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4VideoProcessor,
    GemmaTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from aurora_rl.models.mllm.qwen2_5_vl.tiny import TinyVLConfig, random_model, vl_sizes

if TYPE_CHECKING:
    from aurora_rl.models.mllm.gemma4 import Gemma4Family

# Attribute of the tokenizer -> token; both are those of Gemma's tokenizers.
MEDIA_TOKENS = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}
MEDIA_TOKEN_FIELDS = {
    "image_token_id": "<|image|>",
    "boi_token_id": "<|image>",
    "eoi_token_id": "<image|>",
    "audio_token_id": "<|audio|>",
    "boa_token_id": "<|audio>",
    "eoa_token_index": "<audio|>",
    "video_token_id": "<|video|>",
}
TURNS = ("<|turn>", "<turn|>")
NUM_RESERVED = 8
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ '<|' + part['type'] + '|>' }}{% endif %}"
    "{% endfor %}{% endif %}<turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class TinyParts:
    """Classes of a family, and its configs.

    Attributes:
        config_class: class of the whole model's config.
        processor_class: class of the processor, and of its parts for sound, images and videos.
        extractor_class: class of its part for sound.
        image_processor_class: class of its part for images.
        video_processor_class: class of its part for videos.
    """

    config_class: type[PretrainedConfig] = Gemma4Config
    processor_class: type[ProcessorMixin] = Gemma4Processor
    extractor_class: type = Gemma4AudioFeatureExtractor
    image_processor_class: type = Gemma4ImageProcessor
    video_processor_class: type = Gemma4VideoProcessor

    def text(self, size: TinyVLConfig, num_tokens: int) -> dict[str, Any]:
        """Return further fields of the language model: half of the layers take keys and values of the others."""
        return {
            "vocab_size_per_layer_input": num_tokens,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": size.num_layers,
        }

    def vision(self, size: TinyVLConfig) -> dict[str, Any]:
        """Return the fields of what reads frames."""
        return {
            "hidden_size": size.tower_size,
            "intermediate_size": 2 * size.tower_size,
            "num_hidden_layers": size.tower_layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": size.tower_size // 2,
            "patch_size": size.patch_size,
            "position_embedding_size": 128,
            # vLLM reads it, and the class of transformers does not declare it
            "default_output_length": 280,
        }

    def audio(self, size: TinyVLConfig) -> dict[str, Any]:
        """Return the fields of what reads sound."""
        return {
            "hidden_size": size.tower_size,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "output_proj_dims": size.tower_size,
            "subsampling_conv_channels": [128, 8],  # the first must be the number of mel bands
        }


def build_tiny(
    family: Gemma4Family,
    texts: Iterable[str],
    *,
    parts: TinyParts | None = None,
    segmenter: dict[str, Any] | None = None,
    heads: dict[str, dict[str, Any]] | None = None,
    sizes: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Make a random model and its processor; see `MLLMFamily.build_tiny`."""
    size, parts = vl_sizes(sizes), parts or TinyParts()
    processor: Any = _processor(parts, texts, size)
    config = _config(parts, processor.tokenizer, size, hears=family.hears)
    return random_model(family, config, processor, segmenter=segmenter, heads=heads, seed=size.seed), processor


def train_tokenizer(texts: Iterable[str], *, max_vocab_size: int) -> GemmaTokenizer:
    """Train a byte-pair vocabulary like Gemma's, without a head's token."""
    reserved = [f"<unused{number}>" for number in range(NUM_RESERVED)]
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *reserved, *(f"<0x{byte:02X}>" for byte in range(256))]
    last = [*TURNS, *MEDIA_TOKENS.values(), "<|video|>"]
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Replace(" ", "\u2581")
    bpe.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=max_vocab_size,
        special_tokens=[*first, *last],
        initial_alphabet=[chr(code) for code in range(33, 127)] + ["\u2581", "\n"],
        show_progress=False,
    )
    bpe.train_from_iterator([*texts, "user model system 00:00 00:01"], trainer)
    state = json.loads(bpe.to_str())["model"]
    tokenizer = GemmaTokenizer(
        vocab=state["vocab"],
        merges=[tuple(merge) for merge in state["merges"]],
        extra_special_tokens=dict(MEDIA_TOKENS),
        add_bos_token=True,
        model_max_length=32768,
    )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in TURNS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in reserved])
    return tokenizer


def _processor(parts: TinyParts, texts: Iterable[str], size: TinyVLConfig) -> ProcessorMixin:
    return parts.processor_class(
        parts.extractor_class(),
        parts.image_processor_class(patch_size=size.patch_size),
        train_tokenizer(texts, max_vocab_size=size.max_vocab_size),
        parts.video_processor_class(patch_size=size.patch_size),
        chat_template=TEMPLATE,
    )


def _config(parts: TinyParts, tokenizer: Any, size: TinyVLConfig, *, hears: bool) -> PretrainedConfig:
    head_dim = size.hidden_size // size.num_heads
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": size.hidden_size,
        "intermediate_size": 3 * size.hidden_size // 2,
        "num_hidden_layers": 2 * size.num_layers,
        "layer_types": ["sliding_attention", "full_attention"] * size.num_layers,
        "sliding_window": 128,
        "num_attention_heads": size.num_heads,
        "num_key_value_heads": max(1, size.num_heads // 2),
        "head_dim": head_dim,
        "global_head_dim": head_dim,
        "max_position_embeddings": 32768,
        "final_logit_softcapping": 30.0,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": size.initializer_range,
        **parts.text(size, len(tokenizer)),
    }
    ids = {field: tokenizer.convert_tokens_to_ids(token) for field, token in MEDIA_TOKEN_FIELDS.items()}
    audio = parts.audio(size) if hears else None
    return parts.config_class(text_config=text, vision_config=parts.vision(size), audio_config=audio, **ids)
