"""Qwen3-VL with experts with heads."""

from transformers import Qwen3VLMoeForConditionalGeneration

from aurora_rl.models.mllm.mixin import MLLMMixin


class AuroraQwen3VLMoe(MLLMMixin, Qwen3VLMoeForConditionalGeneration):
    """Qwen3-VL with experts with `[SEG]` -> masks."""
