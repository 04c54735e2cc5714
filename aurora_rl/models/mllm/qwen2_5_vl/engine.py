"""Qwen2.5-VL inside vLLM, with the positions of the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Qwen2_5_VLModel as HFModel
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from aurora_rl.models.mllm.engine_prompts import by_place, number, of_kind, part_with_positions
from aurora_rl.models.mllm.sharing import TOKEN_TYPES


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2_5_VLMultiModalProcessor, info=Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class AuroraQwen2_5_VLForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    """A subclass of vLLM's model that places tokens as transformers 5.17 does.

    vLLM places the text after all of a video, transformers after the video's height and width alone, which a longer
    video exceeds in time. And transformers cuts the seconds between two grids to whole ones.
    """

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: Sequence[Any]
    ) -> tuple[torch.Tensor, int]:
        """Return the positions (3, L) of a prompt, and the offset of its completion's positions from their index."""
        videos = of_kind(by_place(mm_features), "video")
        if not videos:
            return super().get_mrope_input_positions(input_tokens, list(mm_features))
        ids = torch.tensor([input_tokens])
        position_ids, _ = HFModel.get_rope_index(
            part_with_positions(HFModel, self.config, "get_vision_position_ids"),
            ids,
            (ids == self.config.video_token_id) * TOKEN_TYPES["video"],
            video_grid_thw=torch.stack([feature.data["video_grid_thw"].data for feature in videos]),
            second_per_grid_ts=torch.tensor([number(feature, "second_per_grid_ts", 1.0) for feature in videos]),
        )
        # A completion goes on where the prompt's text ends; the other result of transformers counts from the video.
        return position_ids[:, 0], int(position_ids[0, 0, -1]) + 1 - len(input_tokens)
