"""Gemma 4 unified with heads."""

from transformers import Gemma4UnifiedForConditionalGeneration

from aurora_rl.models.mllm.mixin import MLLMMixin


class AuroraGemma4Unified(MLLMMixin, Gemma4UnifiedForConditionalGeneration):
    """Gemma 4 unified with `[SEG]` -> masks."""
