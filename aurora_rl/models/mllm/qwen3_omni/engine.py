"""Qwen3-Omni inside vLLM, with the positions of the training, and sound between the frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Qwen3OmniMoeThinkerForConditionalGeneration as HFThinker
from vllm.model_executor.models.qwen3_omni_moe_thinker import (
    Qwen3OmniMoeThinkerDummyInputsBuilder,
    Qwen3OmniMoeThinkerForConditionalGeneration,
    Qwen3OmniMoeThinkerMultiModalProcessor,
    Qwen3OmniMoeThinkerProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.utils import copy_mm_embedding_modality

from aurora_rl.models.mllm.engine_prompts import by_place, merged_by_kind, of_kind, on_host, thinker_positions


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3OmniMoeThinkerMultiModalProcessor,
    info=Qwen3OmniMoeThinkerProcessingInfo,
    dummy_inputs=Qwen3OmniMoeThinkerDummyInputsBuilder,
)
class AuroraQwen3OmniMoeForConditionalGeneration(Qwen3OmniMoeThinkerForConditionalGeneration):
    """A subclass of vLLM's model that corrects prompts with media.

    vLLM 0.31 takes a medium's first placeholder for the token before it, which moves the positions of a video by one.
    And where sound lies between the frames it loses which embeddings are whose, as it cuts those of the frames into
    what goes to the first layer and what goes to deeper ones.
    """

    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings: Any = None,
        *,
        is_multimodal: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the inputs (tokens, width) of the first layer, and keep what is added after the first layers."""
        if multimodal_embeddings is None or is_multimodal is None or not len(multimodal_embeddings):
            return super().embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)
        width = self.config.text_config.hidden_size
        deeper = [embeddings[:, width:] for embeddings in multimodal_embeddings if embeddings.size(1) > width]
        if deeper:
            is_video = is_multimodal & (on_host(input_ids, is_multimodal) == self.config.video_token_id)
            self._set_deepstack_input_embeds(self._added_by_layer(is_video, torch.cat(deeper)))
        first = [copy_mm_embedding_modality(whole, whole[:, :width]) for whole in multimodal_embeddings]
        ids = {"video_id": self.config.video_token_id, "audio_id": self.config.audio_token_id}
        return merged_by_kind(self, input_ids, first, is_multimodal, **ids)

    def _added_by_layer(self, is_video: torch.Tensor, deeper: torch.Tensor) -> torch.Tensor:
        """Return what is added to each token's state after the first layers, (layers, tokens, width), zero for text."""
        added = deeper.new_zeros(len(is_video), deeper.size(1))
        added[is_video] = deeper
        return added.unflatten(1, (self.deepstack_num_level, -1)).transpose(0, 1)

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: Sequence[Any]
    ) -> tuple[torch.Tensor, int]:
        """Return the positions (3, L) of a prompt, and the offset of its completion's positions from their index.

        Raises:
            ValueError: if a frame's position is no whole number, which vLLM cannot hold.
        """
        features = by_place(mm_features)
        if not of_kind(features, "video"):
            return super().get_mrope_input_positions(input_tokens, list(mm_features))
        position_ids, delta = thinker_positions(HFThinker, self.config, input_tokens, features)
        return whole(position_ids), delta


def whole(position_ids: torch.Tensor) -> torch.Tensor:
    """Return positions (3, L) as whole numbers, which vLLM holds; others are a ValueError."""
    if parted := int(position_ids[0].frac().count_nonzero()):
        raise ValueError(
            f"at this rate of frames {parted} tokens of a video have positions in time that are no whole numbers, "
            "which vLLM cannot hold: choose another fps, such as 1 or 2, or set use_vllm to false"
        )
    return position_ids.long()
