"""Qwen3.5, which sees frames and reads text, and hears nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aurora_rl.models.mllm.qwen2_5_vl import Qwen2_5VLFamily

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from aurora_rl.models.mllm.qwen2_5_vl.tiny import TinyParts


class Qwen3_5Family(Qwen2_5VLFamily):
    """Qwen3.5 reads a video as Qwen3-VL does; most of its layers have linear attention."""

    model_types = ("qwen3_5",)
    engine_architecture = "Qwen3_5ForConditionalGeneration"
    engine_class = None
    tool_format = None  # its calls are not JSON
    tokens_of_time = 9  # <, 4, ., 5, seconds, >, a digit more, and two delimiters
    lora_target_modules = r"model\.language_model\.layers\.\d+\.(self_attn\.(q_proj|v_proj)|linear_attn\.in_proj_qkv)"

    @property
    def model_class(self) -> type[PreTrainedModel]:
        from aurora_rl.models.mllm.qwen3_5.model import AuroraQwen3_5

        return AuroraQwen3_5

    def tiny_parts(self) -> TinyParts:
        from aurora_rl.models.mllm.qwen3_5.tiny import QWEN3_5

        return QWEN3_5
