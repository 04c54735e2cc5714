"""Qwen2.5-Omni: the thinker (vision tower, audio tower, language model) with a segmentation head.

The talker, which speaks, is never loaded.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from qwen_vl_utils import process_vision_info
from transformers import PretrainedConfig, ProcessorMixin, Qwen2_5OmniThinkerForConditionalGeneration

from aurora_rl.models.mllm.base import EncodedPrompt, MLLMFamily
from aurora_rl.models.segmentation import BackboneView, SegmentationMixin

#: What the towers read; the other media tensors describe it, and the language model needs them row by row.
TOWER_INPUTS = ("pixel_values", "pixel_values_videos", "input_features")


class AuroraQwen2_5Omni(SegmentationMixin, Qwen2_5OmniThinkerForConditionalGeneration):
    """Qwen2.5-Omni's thinker with `[SEG]` -> masks."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.init_segmentation()

    # `generate` checks its keyword arguments against this signature, so it must stay the family's own.
    @functools.wraps(Qwen2_5OmniThinkerForConditionalGeneration.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward_with_masks(super().forward, *args, **kwargs)

    def get_image_features(
        self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        """As the thinker's, the images of each distinct clip read once; all rows have equally many."""
        if self.media_index is None or image_grid_thw is None:
            return super().get_image_features(pixel_values, image_grid_thw, **kwargs)
        grids = image_grid_thw.unflatten(0, (len(self.media_index), -1))  # (B, images, 3)
        outputs = super().get_image_features(pixel_values, self.of_distinct_media(grids).flatten(0, 1), **kwargs)
        images, num_images = outputs.pooler_output, grids.size(1)
        outputs.pooler_output = [image for i in self.media_index for image in images[i * num_images :][:num_images]]
        return outputs

    def get_video_features(
        self, pixel_values_videos: torch.Tensor, video_grid_thw: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        """As the thinker's, each distinct clip read once and its features handed to all of its rows."""
        if self.media_index is None or video_grid_thw is None:
            return super().get_video_features(pixel_values_videos, video_grid_thw, **kwargs)
        outputs = super().get_video_features(pixel_values_videos, self.of_distinct_media(video_grid_thw), **kwargs)
        outputs.pooler_output = [outputs.pooler_output[i] for i in self.media_index]
        return outputs

    def get_audio_features(
        self,
        input_features: torch.Tensor,
        feature_attention_mask: torch.Tensor | None = None,
        audio_feature_lengths: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the thinker's, each distinct clip heard once and its features handed to all of its rows."""
        if self.media_index is None or feature_attention_mask is None:
            return super().get_audio_features(input_features, feature_attention_mask, audio_feature_lengths, **kwargs)
        mask = self.of_distinct_media(feature_attention_mask)
        outputs = super().get_audio_features(input_features, mask, audio_feature_lengths, **kwargs)
        _, lengths = self.audio_tower._get_feat_extract_output_lengths(mask.sum(-1))
        clips = outputs.last_hidden_state.split(lengths.tolist())
        outputs.last_hidden_state = torch.cat([clips[i] for i in self.media_index])
        return outputs

    @property
    def base_model(self) -> Any:
        """Multimodal merge + decoder without `lm_head`; the thinker's own `base_model` is the thinker itself."""
        return BackboneView(self, Qwen2_5OmniThinkerForConditionalGeneration.forward)


class Qwen2_5OmniFamily(MLLMFamily):
    """Frames as a video, the sound as a separate audio part."""

    model_class = AuroraQwen2_5Omni
    tower_names = ("visual", "audio_tower")
    lora_target_modules = r"model\.layers\.\d+\.self_attn\.(q_proj|v_proj)"

    def config_from(self, config: PretrainedConfig) -> PretrainedConfig:
        return getattr(config, "thinker_config", config)

    def multimodal_token_ids(self, config: PretrainedConfig) -> list[int]:
        names = ("audio", "image", "video", "audio_start", "audio_end", "vision_start", "vision_end")
        ids = {getattr(config, f"{name}_token_id", None) for name in names}
        return sorted(token_id for token_id in ids if token_id is not None)

    def encode(
        self,
        processor: ProcessorMixin,
        messages: Sequence[Mapping[str, Any]],
        *,
        waveform: np.ndarray | None,
        fps: float,
    ) -> EncodedPrompt:
        video_processor = processor.video_processor
        images, videos = process_vision_info(list(messages), image_patch_size=video_processor.patch_size)
        text = processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        _check_placeholders(text, processor, images=images, videos=videos, waveform=waveform)
        inputs = processor(
            text=[text],
            images=images,
            videos=videos,
            audio=None if waveform is None else [waveform],
            # process_vision_info has sized the frames already; sampling them again would drop some. The cap belongs to
            # resizing, and is given only because transformers warns where it is not.
            videos_kwargs={"do_resize": False, "do_sample_frames": False, "fps": fps, "cap_pixels_per_frame": False},
            audio_kwargs={"max_length": _padded_length(waveform, processor.feature_extractor)},
            return_tensors="pt",
        )
        features = {k: torch.as_tensor(v) for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
        return EncodedPrompt(inputs["input_ids"][0].tolist(), _trim_audio(features))

    def collate_features(
        self, features: Sequence[Mapping[str, torch.Tensor]], media_index: Sequence[int]
    ) -> dict[str, torch.Tensor]:
        if len({frozenset(clip) for clip in features}) > 1:
            raise ValueError(f"clips of one batch must all have the same media: {[sorted(clip) for clip in features]}")
        batch = {}
        for name in features[0]:
            tensors = [clip[name] for clip in features]
            if name in ("input_features", "feature_attention_mask"):
                longest = max(t.size(-1) for t in tensors)
                tensors = [torch.nn.functional.pad(t, (0, longest - t.size(-1))) for t in tensors]
            batch[name] = torch.cat(tensors if name in TOWER_INPUTS else [tensors[i] for i in media_index])
        return batch


def _check_placeholders(
    text: str, processor: ProcessorMixin, *, images: Sequence | None, videos: Sequence | None, waveform: Any
) -> None:
    """Raise a ValueError unless each medium has its placeholder; a reference could hold one as text, for example."""
    shortest = 2 * processor.feature_extractor.hop_length + 1
    if waveform is not None and len(waveform) < shortest:
        raise ValueError(f"the sound has {len(waveform)} samples, but the audio tower hears nothing below {shortest}")
    for token, given in (
        (processor.image_token, len(images or ())),
        (processor.video_token, len(videos or ())),
        (processor.audio_token, int(waveform is not None)),
    ):
        if text.count(token) != given:
            raise ValueError(f"the prompt has {text.count(token)} {token} where {given} are given: {text!r}")


def _padded_length(waveform: np.ndarray | None, feature_extractor: Any) -> int | None:
    """Samples to pad the sound to: one analysis window past its end gives the same frames as 300 s of padding."""
    if waveform is None:
        return None
    hop = feature_extractor.hop_length
    return math.ceil((len(waveform) + feature_extractor.n_fft) / hop) * hop


def _trim_audio(features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Cut the spectrogram's padding off: (1, mels, padded) -> (1, mels, T)."""
    if "feature_attention_mask" in features:
        length = int(features["feature_attention_mask"].sum())
        for name in ("input_features", "feature_attention_mask"):
            features[name] = features[name][..., :length]
    return features
