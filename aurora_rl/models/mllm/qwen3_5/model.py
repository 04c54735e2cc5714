"""Qwen3.5 with heads."""

from transformers import Qwen3_5ForConditionalGeneration

from aurora_rl.models.mllm.mixin import MLLMMixin


class AuroraQwen3_5(MLLMMixin, Qwen3_5ForConditionalGeneration):
    """Qwen3.5 with `[SEG]` -> masks."""
