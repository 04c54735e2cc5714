"""Qwen3-VL with experts, which sees frames and reads text, and hears nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aurora_rl.models.mllm.qwen2_5_vl import Qwen2_5VLFamily

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from aurora_rl.models.mllm.qwen2_5_vl.tiny import TinyParts


class Qwen3VLMoeFamily(Qwen2_5VLFamily):
    """Qwen3-VL whose layers choose among experts."""

    model_types = ("qwen3_vl_moe",)
    engine_architecture = "Qwen3VLMoeForConditionalGeneration"
    engine_class = None
    tokens_of_time = 9  # <, 4, ., 5, seconds, >, a digit more, and two delimiters

    @property
    def model_class(self) -> type[PreTrainedModel]:
        from aurora_rl.models.mllm.qwen3_vl_moe.model import AuroraQwen3VLMoe

        return AuroraQwen3VLMoe

    def engine_weight(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        # The hub stores the experts' matrices transposed.
        is_of_experts = name.endswith((".experts.gate_up_proj", ".experts.down_proj"))
        return weight.transpose(1, 2).contiguous() if is_of_experts else weight

    def tiny_parts(self) -> TinyParts:
        from aurora_rl.models.mllm.qwen3_vl_moe.tiny import QWEN3_VL_MOE

        return QWEN3_VL_MOE
