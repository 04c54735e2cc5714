"""Gemma 4 with heads."""

from transformers import Gemma4ForConditionalGeneration

from aurora_rl.models.mllm.mixin import MLLMMixin


class AuroraGemma4(MLLMMixin, Gemma4ForConditionalGeneration):
    """Gemma 4 with `[SEG]` -> masks."""
