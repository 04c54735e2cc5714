"""Qwen3.5 with experts, which sees frames and reads text, and hears nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aurora_rl.models.mllm.qwen3_5 import Qwen3_5Family

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from aurora_rl.models.mllm.qwen2_5_vl.tiny import TinyParts


class Qwen3_5MoeFamily(Qwen3_5Family):
    """Qwen3.5 whose layers choose among experts."""

    model_types = ("qwen3_5_moe",)
    engine_architecture = "Qwen3_5MoeForConditionalGeneration"
    engine_refusal = (
        "vLLM 0.31 on a CPU runs it in bfloat16 alone, where log-probabilities differ from transformers' by up to 1.5, "
        "which nobody has explained; on a GPU they have not been compared"
    )

    @property
    def model_class(self) -> type[PreTrainedModel]:
        from aurora_rl.models.mllm.qwen3_5_moe.model import AuroraQwen3_5Moe

        return AuroraQwen3_5Moe

    def tiny_parts(self) -> TinyParts:
        from aurora_rl.models.mllm.qwen3_5_moe.tiny import QWEN3_5_MOE

        return QWEN3_5_MOE
