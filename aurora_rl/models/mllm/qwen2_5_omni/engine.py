"""Qwen2.5-Omni inside vLLM, with the positions of the training where sound lies between the frames."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers import Qwen2_5OmniThinkerForConditionalGeneration as HFThinker
from vllm.model_executor.models import qwen2
from vllm.model_executor.models.qwen2_5_omni_thinker import (
    Qwen2_5OmniThinkerDummyInputsBuilder,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2_5OmniThinkerMultiModalProcessor,
    Qwen2_5OmniThinkerProcessingInfo,
    merge_interleaved_embeddings,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from aurora_rl.models.mllm.narrow_heads import heads_of_any_size


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2_5OmniThinkerMultiModalProcessor,
    info=Qwen2_5OmniThinkerProcessingInfo,
    dummy_inputs=Qwen2_5OmniThinkerDummyInputsBuilder,
)
class AuroraQwen2_5OmniForConditionalGeneration(Qwen2_5OmniThinkerForConditionalGeneration):
    """A subclass of vLLM's model that corrects interleaved prompts, and takes narrow heads on CPUs.

    vLLM 0.31 starts the chunks of frames and sound at `<|audio_bos|>`, one token early, and gives that token a position
    of its own, while transformers gives it that of `<|vision_bos|>`. And if a part of the prompt has been read already,
    in the step before or for another request, vLLM may mistake the rest for frames followed by sound, and swap their
    embeddings.
    """

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        text_config = vllm_config.model_config.hf_config.thinker_config.text_config
        # The weights of the LM head are always sent beside those of the embeddings; an older export may say otherwise.
        text_config.tie_word_embeddings = False
        with heads_of_any_size(qwen2, text_config.hidden_size // text_config.num_attention_heads):
            super().__init__(vllm_config=vllm_config, prefix=prefix)

    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings: Any = None,
        *,
        is_multimodal: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the inputs (tokens, width) of the language model: each medium's embeddings at its own placeholders."""
        if multimodal_embeddings is None or is_multimodal is None or not len(multimodal_embeddings):
            return super().embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)
        with gpu_sync_allowed():  # vLLM forbids waiting for the GPU elsewhere; the mask is in host memory
            ids = input_ids.to(is_multimodal.device)
        text = self._embed_text_input_ids(
            input_ids, self.get_language_model().embed_input_ids, is_multimodal=is_multimodal
        )
        is_video = is_multimodal & (ids == self.config.video_token_index)
        is_audio = is_multimodal & (ids == self.config.audio_token_index)
        return merge_interleaved_embeddings(text, multimodal_embeddings, is_video, is_audio, is_multimodal)

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: Sequence[Any]
    ) -> tuple[torch.Tensor, int]:
        """Return the positions (3, L) of a prompt, and the offset of its completion's positions from their index."""
        features = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        if not any(_value(feature, "use_audio_in_video", False) for feature in features):
            return super().get_mrope_input_positions(input_tokens, list(mm_features))
        position_ids, deltas = HFThinker.get_rope_index(
            _rope_index_of(self.config),
            torch.tensor([input_tokens]),
            video_grid_thw=torch.stack([feature.data["video_grid_thw"].data for feature in _select(features, "video")]),
            use_audio_in_video=True,
            audio_seqlens=torch.tensor(
                [_value(feature, "audio_feature_lengths") for feature in _select(features, "audio")]
            ),
            second_per_grids=torch.tensor(
                [_value(feature, "second_per_grid_ts", 1.0) for feature in _select(features, "video")]
            ),
        )
        return position_ids[:, 0], int(deltas[0])


def _rope_index_of(thinker_config: Any) -> Any:
    """Build the part of a model that the position method of transformers reads."""
    names = ("get_llm_pos_ids_for_vision", "get_chunked_index")
    model = SimpleNamespace(config=thinker_config, spatial_merge_size=thinker_config.vision_config.spatial_merge_size)
    for name in names:
        setattr(model, name, getattr(HFThinker, name).__get__(model))
    return model


def _select(features: Sequence[Any], modality: str) -> list[Any]:
    return [feature for feature in features if feature.modality == modality]


def _value(feature: Any, name: str, default: Any = None) -> Any:
    """Return one number of a medium's processed data."""
    element = (feature.data or {}).get(name)
    return default if element is None else element.data.item()
