"""Prompts inside vLLM: what the families' classes there have in common. Positions are computed by transformers."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from vllm.model_executor.models.qwen2_5_omni_thinker import merge_interleaved_embeddings
from vllm.utils.gpu_sync_debug import gpu_sync_allowed


def merged_by_kind(
    model: Any,
    input_ids: torch.Tensor,
    embeddings: Sequence[torch.Tensor],
    is_multimodal: torch.Tensor,
    *,
    video_id: int,
    audio_id: int,
) -> torch.Tensor:
    """Return a language model's inputs (tokens, width): each medium's embeddings at its own placeholders.

    Args:
        model: the model inside vLLM.
        input_ids: (tokens,) ids.
        embeddings: those of each medium (placeholders, width), which vLLM has tagged with its kind.
        is_multimodal: (tokens,) bool in host memory, whether a token is a placeholder.
        video_id: id of a video's placeholder.
        audio_id: id of a sound's placeholder.
    """
    ids = on_host(input_ids, is_multimodal)
    text = model._embed_text_input_ids(
        input_ids, model.get_language_model().embed_input_ids, is_multimodal=is_multimodal
    )
    is_video, is_audio = (is_multimodal & (ids == token_id) for token_id in (video_id, audio_id))
    return merge_interleaved_embeddings(text, embeddings, is_video, is_audio, is_multimodal)


def on_host(input_ids: torch.Tensor, is_multimodal: torch.Tensor) -> torch.Tensor:
    """Return ids where the mask is; vLLM forbids waiting for the GPU elsewhere."""
    with gpu_sync_allowed():
        return input_ids.to(is_multimodal.device)


def by_place(mm_features: Sequence[Any]) -> list[Any]:
    """Return a prompt's media in the order in which they come."""
    return sorted(mm_features, key=lambda feature: feature.mm_position.offset)


def of_kind(features: Sequence[Any], modality: str) -> list[Any]:
    """Return the media of one kind."""
    return [feature for feature in features if feature.modality == modality]


def number(feature: Any, name: str, default: Any = None) -> Any:
    """Return one number of a medium's processed data."""
    element = (feature.data or {}).get(name)
    return default if element is None else element.data.item()


def thinker_positions(stock: Any, config: Any, input_tokens: list[int], features: Sequence[Any]) -> tuple[Any, Any]:
    """Return the positions (3, L) that a thinker of transformers computes for a prompt with a video, and their offset.

    Args:
        stock: class of the thinker.
        config: its config.
        input_tokens: the prompt's ids, placeholders expanded.
        features: its media in their order.
    """
    model = part_with_positions(stock, config, "get_llm_pos_ids_for_vision", "get_chunked_index")
    videos, audios = of_kind(features, "video"), of_kind(features, "audio")
    lengths = [number(feature, "audio_feature_lengths") for feature in audios]
    input_ids = torch.tensor([input_tokens])
    position_ids, deltas = stock.get_rope_index(
        model,
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        video_grid_thw=torch.stack([feature.data["video_grid_thw"].data for feature in videos]),
        use_audio_in_video=any(number(feature, "use_audio_in_video", False) for feature in videos),
        audio_seqlens=torch.tensor(lengths) if lengths else None,
        second_per_grids=torch.tensor([number(feature, "second_per_grid_ts", 1.0) for feature in videos]),
    )
    return position_ids[:, 0], int(deltas[0])


def part_with_positions(stock: Any, config: Any, *names: str) -> Any:
    """Build the part of a model of transformers that its position method reads, with the methods it calls."""
    part = SimpleNamespace(config=config, spatial_merge_size=config.vision_config.spatial_merge_size)
    for name in names:
        setattr(part, name, getattr(stock, name).__get__(part))
    return part
