"""Qwen2.5-Omni inside vLLM, with the positions of the training where sound lies between the frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Qwen2_5OmniThinkerForConditionalGeneration as HFThinker
from vllm.model_executor.models import qwen2
from vllm.model_executor.models.qwen2_5_omni_thinker import (
    Qwen2_5OmniThinkerDummyInputsBuilder,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2_5OmniThinkerMultiModalProcessor,
    Qwen2_5OmniThinkerProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from aurora_rl.models.mllm.engine_prompts import by_place, merged_by_kind, number, thinker_positions
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
        ids = {"video_id": self.config.video_token_index, "audio_id": self.config.audio_token_index}
        return merged_by_kind(self, input_ids, multimodal_embeddings, is_multimodal, **ids)

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: Sequence[Any]
    ) -> tuple[torch.Tensor, int]:
        """Return the positions (3, L) of a prompt, and the offset of its completion's positions from their index."""
        features = by_place(mm_features)
        if not any(number(feature, "use_audio_in_video", False) for feature in features):
            return super().get_mrope_input_positions(input_tokens, list(mm_features))
        return thinker_positions(HFThinker, self.config, input_tokens, features)
