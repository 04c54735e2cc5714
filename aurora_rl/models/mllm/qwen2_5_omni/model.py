"""The thinker (vision tower, audio tower, language model) with heads.

The talker, which speaks, is never loaded.
"""

from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from aurora_rl.models.mllm.interleaving import InterleavingMixin


class AuroraQwen2_5Omni(InterleavingMixin, Qwen2_5OmniThinkerForConditionalGeneration):
    """Qwen2.5-Omni's thinker with `[SEG]` -> masks."""
