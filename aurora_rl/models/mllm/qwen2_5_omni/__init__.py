"""Qwen2.5-Omni: the thinker (vision tower, audio tower, language model), which reads frames, sound and text.

model       the thinker with a segmentation head
processing  from a conversation to the thinker's inputs
engine      the thinker inside vLLM
tiny        a thinker of random weights
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aurora_rl.models.mllm.base import EncodedPrompt, MLLMFamily, engine_fields

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin


class Qwen2_5OmniFamily(MLLMFamily):
    """Qwen2.5-Omni reads the frames as a video and the sound as a separate audio part."""

    model_types = ("qwen2_5_omni", "qwen2_5_omni_thinker")
    tower_names = ("visual", "audio_tower")
    lora_target_modules = r"model\.layers\.\d+\.self_attn\.(q_proj|v_proj)"
    config_part = "thinker_config"
    position_axes = 3
    engine_prefix = "thinker."
    engine_architecture = "AuroraQwen2_5OmniForConditionalGeneration"
    engine_class = f"{__name__}.engine:AuroraQwen2_5OmniForConditionalGeneration"

    @property
    def model_class(self) -> type[PreTrainedModel]:
        from aurora_rl.models.mllm.qwen2_5_omni.model import AuroraQwen2_5Omni

        return AuroraQwen2_5Omni

    def engine_config(self, config: PretrainedConfig) -> PretrainedConfig:
        from transformers import Qwen2_5OmniConfig

        full = Qwen2_5OmniConfig(thinker_config=engine_fields(config), enable_audio_output=False)
        full.architectures = ["Qwen2_5OmniForConditionalGeneration"]
        return full

    def multimodal_token_ids(self, config: PretrainedConfig) -> list[int]:
        from aurora_rl.models.mllm.qwen2_5_omni.processing import multimodal_token_ids

        return multimodal_token_ids(config)

    def encode(
        self,
        processor: ProcessorMixin,
        messages: Sequence[Mapping[str, Any]],
        *,
        waveform: np.ndarray | None,
        fps: float,
        use_audio_in_video: bool = False,
    ) -> EncodedPrompt:
        from aurora_rl.models.mllm.qwen2_5_omni.processing import encode

        return encode(processor, messages, waveform=waveform, fps=fps, use_audio_in_video=use_audio_in_video)

    def collate_features(
        self, features: Sequence[Mapping[str, torch.Tensor]], media_index: Sequence[int]
    ) -> dict[str, torch.Tensor]:
        from aurora_rl.models.mllm.qwen2_5_omni.processing import collate_features

        return collate_features(features, media_index)

    def build_tiny(
        self,
        texts: Iterable[str],
        *,
        segmenter: dict[str, Any] | None = None,
        heads: dict[str, dict[str, Any]] | None = None,
        sizes: Mapping[str, Any] | None = None,
    ) -> tuple[PreTrainedModel, ProcessorMixin]:
        from aurora_rl.models.mllm.qwen2_5_omni.tiny import TinyOmniConfig, build_tiny_omni

        names = [field.name for field in dataclasses.fields(TinyOmniConfig)]
        if unknown := sorted(set(sizes or {}) - set(names)):
            raise ValueError(f"a tiny model has no size {unknown[0]!r}: choose from {', '.join(names)}")
        return build_tiny_omni(texts, segmenter, TinyOmniConfig(**(sizes or {})), heads=heads)
