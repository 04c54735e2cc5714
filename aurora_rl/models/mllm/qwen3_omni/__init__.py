"""Qwen3-Omni: the thinker, whose layers choose among experts; it reads frames, sound and text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from aurora_rl.models.mllm.base import engine_fields
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from aurora_rl.models.mllm.sizes import SoundRate

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin


class Qwen3OmniFamily(Qwen2_5OmniFamily):
    """Qwen3-Omni reads frames and sound as Qwen2.5-Omni does; its sounds are whole numbers of spectrogram columns."""

    model_types = ("qwen3_omni_moe", "qwen3_omni_moe_thinker")
    hub_model = None
    engine_architecture = "AuroraQwen3OmniMoeForConditionalGeneration"
    engine_class = f"{__name__}.engine:AuroraQwen3OmniMoeForConditionalGeneration"
    sound_rate = SoundRate(100 / 13, 100 / 13)  # three convolutions of stride 2 over windows of 100 columns

    @property
    def model_class(self) -> type[PreTrainedModel]:
        from aurora_rl.models.mllm.qwen3_omni.model import AuroraQwen3Omni

        return AuroraQwen3Omni

    def engine_config(self, config: PretrainedConfig) -> PretrainedConfig:
        from transformers import Qwen3OmniMoeConfig

        full = Qwen3OmniMoeConfig(thinker_config=engine_fields(config), enable_audio_output=False)
        full.architectures = [self.engine_architecture]
        return full

    def processor_options(self, processor: ProcessorMixin, **given: Any) -> dict[str, Any]:
        # The only sound of a call needs no padding, and none is cut to 300 s.
        return {**super().processor_options(processor, **given), "audio_kwargs": {"padding": True, "truncation": False}}

    def samples_per_unit(self, processor: ProcessorMixin) -> int:
        # vLLM counts a column that has begun, transformers does not.
        return processor.feature_extractor.hop_length

    def build_tiny(self, texts: Iterable[str], **options: Any) -> tuple[PreTrainedModel, ProcessorMixin]:
        from aurora_rl.models.mllm.qwen3_omni.tiny import build_tiny

        return build_tiny(self, texts, **options)
