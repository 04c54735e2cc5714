"""Qwen2.5-Omni: the thinker (vision tower, audio tower, language model), which reads frames, sound and text.

model       the thinker with heads
engine      the thinker inside vLLM
tiny        a thinker of random weights
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from aurora_rl.models.mllm.base import MLLMFamily, engine_fields
from aurora_rl.models.mllm.tool_calls import QWEN_TOOLS, ToolFormat

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin

#: Columns of the shortest spectrogram, for which the audio tower's strides leave one feature.
SHORTEST_SPECTROGRAM = 3


class Qwen2_5OmniFamily(MLLMFamily):
    """Qwen2.5-Omni reads the frames as a video and the sound as a separate audio part."""

    model_types = ("qwen2_5_omni", "qwen2_5_omni_thinker")
    hub_model: ClassVar[str | None] = "Qwen/Qwen2.5-Omni-7B"
    tower_names = ("visual", "audio_tower")
    lora_target_modules = r"model\.layers\.\d+\.self_attn\.(q_proj|v_proj)"
    config_part = "thinker_config"
    tool_format: ClassVar[ToolFormat | None] = QWEN_TOOLS
    position_axes = 3
    engine_prefix = "thinker."
    engine_architecture = "AuroraQwen2_5OmniForConditionalGeneration"
    engine_class: ClassVar[str | None] = f"{__name__}.engine:AuroraQwen2_5OmniForConditionalGeneration"

    @property
    def model_class(self) -> type[PreTrainedModel]:
        from aurora_rl.models.mllm.qwen2_5_omni.model import AuroraQwen2_5Omni

        return AuroraQwen2_5Omni

    def engine_config(self, config: PretrainedConfig) -> PretrainedConfig:
        from transformers import Qwen2_5OmniConfig

        full = Qwen2_5OmniConfig(thinker_config=engine_fields(config), enable_audio_output=False)
        full.architectures = ["Qwen2_5OmniForConditionalGeneration"]
        return full

    def processor_options(
        self,
        processor: ProcessorMixin,
        *,
        num_frames: int,
        fps: float,
        waveform: np.ndarray | None,
        use_audio_in_video: bool,
    ) -> dict[str, Any]:
        # The frames are resized already, and sampling them again would drop some. The cap concerns resizing, and is
        # given only because transformers warns without it.
        videos = {"do_resize": False, "do_sample_frames": False, "fps": fps, "cap_pixels_per_frame": False}
        return {
            "videos_kwargs": {**videos, "use_audio_in_video": use_audio_in_video},
            "audio_kwargs": {"max_length": padded_length(waveform, processor.feature_extractor)},
        }

    def engine_options(self, processor: ProcessorMixin, *, fps: float, use_audio_in_video: bool) -> dict[str, Any]:
        options: dict[str, Any] = {"do_resize": False, "do_sample_frames": False, "fps": fps}
        if use_audio_in_video:
            # vLLM places frames and sound by an option of its own, whose default is one second a grid.
            seconds_per_grid = processor.video_processor.temporal_patch_size / fps
            options |= {"use_audio_in_video": True, "second_per_grid_ts": [seconds_per_grid]}
        return options

    def trim_features(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Trim the padding of a spectrogram: (1, mels, padded) -> (1, mels, T)."""
        if (mask := features.get("feature_attention_mask")) is None:
            return features
        names = ("input_features", "feature_attention_mask")
        return {**features, **{name: features[name][..., : int(mask.sum())] for name in names}}

    def silence(self, processor: ProcessorMixin) -> dict[str, torch.Tensor]:
        import torch

        return {
            "input_features": torch.zeros(1, processor.feature_extractor.feature_size, SHORTEST_SPECTROGRAM),
            "feature_attention_mask": torch.zeros(1, SHORTEST_SPECTROGRAM, dtype=torch.int32),
        }

    def shortest_sound(self, processor: ProcessorMixin) -> int:
        return (SHORTEST_SPECTROGRAM - 1) * processor.feature_extractor.hop_length + 1

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


def padded_length(waveform: np.ndarray | None, feature_extractor: Any) -> int | None:
    """Return the padded length in samples: one analysis window past the end gives the same frames as 300 s."""
    if waveform is None:
        return None
    hop = feature_extractor.hop_length
    return math.ceil((len(waveform) + feature_extractor.n_fft) / hop) * hop
