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
#: Frames of a spectrogram, of which the audio tower's strides leave one feature.
SHORTEST_SPECTROGRAM = 3


class AuroraQwen2_5Omni(SegmentationMixin, Qwen2_5OmniThinkerForConditionalGeneration):
    """Qwen2.5-Omni's thinker with `[SEG]` -> masks."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.init_segmentation()

    # `generate` checks its keyword arguments against this signature, so it must stay the family's own.
    @functools.wraps(Qwen2_5OmniThinkerForConditionalGeneration.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward_with_masks(super().forward, *args, **kwargs)

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
        """As the thinker's, each distinct clip heard once and its features handed to all of its rows that have sound.

        Args:
            input_features: (U, mels, T) of the distinct clips.
            feature_attention_mask: (B, T), zeros for a row without sound.
        """
        if feature_attention_mask is None:
            return super().get_audio_features(input_features, feature_attention_mask, audio_feature_lengths, **kwargs)
        mask = feature_attention_mask if self.media_index is None else self.of_distinct_media(feature_attention_mask)
        heard = mask.any(-1)  # (U,)
        if not heard.any():
            # The tower runs all the same, forward and backward: under ZeRO-3 the other ranks wait for its weights.
            # No placeholder takes what it says, so its gradient is zero.
            return super().get_audio_features(input_features[:1], torch.ones_like(mask[:1]), None, **kwargs)
        outputs = super().get_audio_features(input_features[heard], mask[heard], audio_feature_lengths, **kwargs)
        if self.media_index is not None:
            _, lengths = self.audio_tower._get_feat_extract_output_lengths(mask[heard].sum(-1))
            clips = outputs.last_hidden_state.split(lengths.tolist())
            sounds = dict(zip(heard.nonzero().flatten().tolist(), clips, strict=True))
            outputs.last_hidden_state = torch.cat([sounds[i] for i in self.media_index if i in sounds])
        return outputs

    def get_rope_index(
        self,
        input_ids: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        use_audio_in_video: bool = False,
        audio_seqlens: torch.Tensor | None = None,
        second_per_grids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As the thinker's, which expects a length for each sound in the prompts, and none for a row without."""
        sounds = None if audio_seqlens is None else audio_seqlens[audio_seqlens > 0]
        return super().get_rope_index(
            input_ids, image_grid_thw, video_grid_thw, attention_mask, use_audio_in_video, sounds, second_per_grids
        )

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
        if waveform is not None:
            features |= _trimmed_audio(features)
        elif features:  # a prompt of text alone runs no tower
            features |= _nothing_to_hear(processor.feature_extractor)
        return EncodedPrompt(inputs["input_ids"][0].tolist(), features)

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


def _trimmed_audio(features: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The spectrogram without its padding: (1, mels, padded) -> (1, mels, T)."""
    length = int(features["feature_attention_mask"].sum())
    return {name: features[name][..., :length] for name in ("input_features", "feature_attention_mask")}


def _nothing_to_hear(feature_extractor: Any) -> dict[str, torch.Tensor]:
    """What a clip without sound gives the audio tower: the shortest spectrogram it takes, all of it masked."""
    return {
        "input_features": torch.zeros(1, feature_extractor.feature_size, SHORTEST_SPECTROGRAM),
        "feature_attention_mask": torch.zeros(1, SHORTEST_SPECTROGRAM, dtype=torch.int32),
    }
