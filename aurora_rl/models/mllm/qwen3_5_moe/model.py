"""Qwen3.5 with experts with heads."""

from transformers import Qwen3_5MoeForConditionalGeneration

from aurora_rl.models.mllm.mixin import MLLMMixin


class AuroraQwen3_5Moe(MLLMMixin, Qwen3_5MoeForConditionalGeneration):
    """Qwen3.5 with experts with `[SEG]` -> masks."""
