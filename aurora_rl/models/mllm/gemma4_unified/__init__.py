"""Gemma 4 unified, the 12B, which has no towers: patches of frames and 40 ms of raw sound are projected to tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aurora_rl.models.mllm.base import MLLMFamily
from aurora_rl.models.mllm.gemma4 import BOTH_DIRECTIONS, Gemma4Family

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin


class Gemma4UnifiedFamily(Gemma4Family):
    """Gemma 4 unified reads frames and sound as Gemma 4 does; tokens of a frame see each other in both directions."""

    model_types = ("gemma4_unified",)
    tower_names = ("model.embed_vision", "model.embed_audio")
    engine_architecture = "Gemma4UnifiedForConditionalGeneration"
    engine_refusal = BOTH_DIRECTIONS
    tower_cache_refusal = "has no towers, only projections of patches and sound, whose outputs are as large as inputs"

    @property
    def model_class(self) -> type[PreTrainedModel]:
        from aurora_rl.models.mllm.gemma4_unified.model import AuroraGemma4Unified

        return AuroraGemma4Unified

    def for_config(self, config: PretrainedConfig) -> MLLMFamily:
        return self

    def engine_name(self, name: str) -> str:
        # The projection to the language model's width has a place of its own there, beside that of sound.
        parts = {
            "model.embed_vision.multimodal_embedder.": "model.embed_vision.",
            "model.embed_vision.": "model.vision_embedder.",
        }
        old = next((part for part in parts if name.startswith(part)), "")
        return parts.get(old, "") + name.removeprefix(old)

    def shortest_sound(self, processor: ProcessorMixin) -> int:
        return 1

    def samples_per_unit(self, processor: ProcessorMixin) -> int:
        # vLLM counts as for Gemma 4, which leaves out a token that has begun.
        return processor.feature_extractor.audio_samples_per_token

    def build_tiny(self, texts: Any, **options: Any) -> tuple[PreTrainedModel, ProcessorMixin]:
        from aurora_rl.models.mllm.gemma4_unified.tiny import GEMMA4_UNIFIED

        return super().build_tiny(texts, parts=GEMMA4_UNIFIED, **options)
