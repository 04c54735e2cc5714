"""Qwen2.5-VL with heads."""

from transformers import Qwen2_5_VLForConditionalGeneration

from aurora_rl.models.mllm.mixin import MLLMMixin


class AuroraQwen2_5VL(MLLMMixin, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL with `[SEG]` -> masks."""
