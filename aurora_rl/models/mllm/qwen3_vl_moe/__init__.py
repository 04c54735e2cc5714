"""Qwen3-VL with experts, which sees frames and reads text, and hears nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aurora_rl.models.mllm.qwen2_5_vl import Qwen2_5VLFamily

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from aurora_rl.models.mllm.qwen2_5_vl.tiny import TinyParts


class Qwen3VLMoeFamily(Qwen2_5VLFamily):
    """Qwen3-VL whose layers choose among experts."""

    model_types = ("qwen3_vl_moe",)
    engine_architecture = "Qwen3VLMoeForConditionalGeneration"
    tokens_of_time = 9  # <, 4, ., 5, seconds, >, a digit more, and two delimiters

    @property
    def model_class(self) -> type[PreTrainedModel]:
        from aurora_rl.models.mllm.qwen3_vl_moe.model import AuroraQwen3VLMoe

        return AuroraQwen3VLMoe

    def tiny_parts(self) -> TinyParts:
        from aurora_rl.models.mllm.qwen3_vl_moe.tiny import QWEN3_VL_MOE

        return QWEN3_VL_MOE
