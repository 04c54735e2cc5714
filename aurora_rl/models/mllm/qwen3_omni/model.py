"""The thinker (vision tower, audio tower, language model with experts) with heads."""

from transformers import Qwen3OmniMoeThinkerForConditionalGeneration

from aurora_rl.models.mllm.interleaving import InterleavingMixin


class AuroraQwen3Omni(InterleavingMixin, Qwen3OmniMoeThinkerForConditionalGeneration):
    """Qwen3-Omni's thinker with `[SEG]` -> masks."""
