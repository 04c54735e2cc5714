"""Qwen3-VL with heads."""

from transformers import Qwen3VLForConditionalGeneration

from aurora_rl.models.mllm.mixin import MLLMMixin


class AuroraQwen3VL(MLLMMixin, Qwen3VLForConditionalGeneration):
    """Qwen3-VL with `[SEG]` -> masks."""
