"""Qwen3-VL, which sees frames and reads text, and hears nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aurora_rl.models.mllm.qwen2_5_vl import Qwen2_5VLFamily

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from aurora_rl.models.mllm.qwen2_5_vl.tiny import TinyParts


class Qwen3VLFamily(Qwen2_5VLFamily):
    """Qwen3-VL reads each pair of frames as a video of its own, and their time as text."""

    model_types = ("qwen3_vl",)
    engine_architecture = "Qwen3VLForConditionalGeneration"
    engine_class = None
    tokens_of_time = 9  # <, 4, ., 5, seconds, >, a digit more, and two delimiters

    @property
    def model_class(self) -> type[PreTrainedModel]:
        from aurora_rl.models.mllm.qwen3_vl.model import AuroraQwen3VL

        return AuroraQwen3VL

    def tiny_parts(self) -> TinyParts:
        from aurora_rl.models.mllm.qwen3_vl.tiny import QWEN3_VL

        return QWEN3_VL
