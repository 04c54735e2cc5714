"""What a tiny Gemma 4 unified is made of; `gemma4.tiny` builds it."""

from typing import Any

from transformers import (
    Gemma4UnifiedAudioFeatureExtractor,
    Gemma4UnifiedConfig,
    Gemma4UnifiedImageProcessor,
    Gemma4UnifiedProcessor,
    Gemma4UnifiedVideoProcessor,
)

from aurora_rl.models.mllm.gemma4.tiny import TinyParts
from aurora_rl.models.mllm.qwen2_5_vl.tiny import TinyVLConfig


class UnifiedParts(TinyParts):
    """Parts without towers."""

    def text(self, size: TinyVLConfig, num_tokens: int) -> dict[str, Any]:
        return {"use_bidirectional_attention": "vision"}

    def vision(self, size: TinyVLConfig) -> dict[str, Any]:
        return {
            "patch_size": size.patch_size,
            "mm_embed_dim": size.tower_size,
            "output_proj_dims": size.tower_size,
            "mm_posemb_size": 128,
            # vLLM reads it, and the class of transformers does not declare it
            "num_soft_tokens": 280,
        }

    def audio(self, size: TinyVLConfig) -> dict[str, Any]:
        return {"audio_embed_dim": 640}


GEMMA4_UNIFIED = UnifiedParts(
    Gemma4UnifiedConfig,
    Gemma4UnifiedProcessor,
    Gemma4UnifiedAudioFeatureExtractor,
    Gemma4UnifiedImageProcessor,
    Gemma4UnifiedVideoProcessor,
)
