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
from transformers import (
    PretrainedConfig,
    ProcessorMixin,
    Qwen2_5OmniConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
)

from aurora_rl.models.control_tokens import ControlTokenError, check_prompt, own_messages
from aurora_rl.models.grounding import BackboneView, SegmentationMixin
from aurora_rl.models.mllm.base import EncodedPrompt, EnginePrompt, MLLMFamily

#: Inputs of the towers. The other media tensors describe these, and the language model needs them row by row.
TOWER_INPUTS = ("pixel_values", "pixel_values_videos", "input_features")
#: Frames of the shortest spectrogram, for which the audio tower's strides leave one feature.
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

    def get_image_features(
        self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Compute the thinker's image features once for each distinct clip; all rows have the same number of images."""
        if self.media_index is None or image_grid_thw is None:
            return super().get_image_features(pixel_values, image_grid_thw, **kwargs)
        grids = image_grid_thw.unflatten(0, (len(self.media_index), -1))  # (B, images, 3)
        outputs = super().get_image_features(pixel_values, self.select_distinct(grids).flatten(0, 1), **kwargs)
        images, num_images = outputs.pooler_output, grids.size(1)
        outputs.pooler_output = [image for i in self.media_index for image in images[i * num_images :][:num_images]]
        return outputs

    def get_video_features(
        self, pixel_values_videos: torch.Tensor, video_grid_thw: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Compute the thinker's video features once for each distinct clip, and share them among its rows."""
        if self.media_index is None or video_grid_thw is None:
            return super().get_video_features(pixel_values_videos, video_grid_thw, **kwargs)
        outputs = super().get_video_features(pixel_values_videos, self.select_distinct(video_grid_thw), **kwargs)
        outputs.pooler_output = [outputs.pooler_output[i] for i in self.media_index]
        return outputs

    def get_audio_features(
        self,
        input_features: torch.Tensor,
        feature_attention_mask: torch.Tensor | None = None,
        audio_feature_lengths: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Compute the thinker's audio features once for each distinct clip, and share them among its rows with sound.

        Args:
            input_features: (U, mels, T) spectrograms of the distinct clips.
            feature_attention_mask: (B, T), zeros for a row without sound.
        """
        if feature_attention_mask is None:
            return super().get_audio_features(input_features, feature_attention_mask, audio_feature_lengths, **kwargs)
        mask = feature_attention_mask if self.media_index is None else self.select_distinct(feature_attention_mask)
        heard = mask.any(-1)  # (U,)
        if not heard.any():
            # The tower still runs, forward and backward, because under ZeRO-3 the other ranks wait for its weights.
            # No placeholder takes its output, so its gradient is zero.
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
        """Compute the thinker's positions; the token ids of each row decide whether its sound lies between the frames.

        Args:
            use_audio_in_video: not read; a flag for the whole batch could contradict its rows unnoticed.
            audio_seqlens: (B,) lengths of the spectrograms, 0 for a row without sound.
        """
        if audio_seqlens is not None:
            audio_seqlens = audio_seqlens[audio_seqlens > 0]  # the thinker counts off one for each sound
        if input_ids is None or video_grid_thw is None:
            return super().get_rope_index(
                input_ids, image_grid_thw, video_grid_thw, attention_mask, False, audio_seqlens, second_per_grids
            )
        starts = input_ids[:, :-1] == self.config.vision_start_token_id
        followed_by = {
            name: (starts & (input_ids[:, 1:] == getattr(self.config, f"{name}_token_id"))).sum(1).tolist()
            for name in ("image", "video", "audio_start")
        }
        interleaved = [count > 0 for count in followed_by["audio_start"]]
        num_videos = [sum(counts) for counts in zip(followed_by["video"], followed_by["audio_start"], strict=True)]
        num_audios = (input_ids == self.config.audio_start_token_id).sum(1).tolist()
        if len(set(interleaved)) == 1:
            return super().get_rope_index(
                input_ids,
                image_grid_thw,
                video_grid_thw,
                attention_mask,
                interleaved[0],
                audio_seqlens,
                second_per_grids,
            )
        rows = zip(
            input_ids.split(1),
            _split_rows(image_grid_thw, followed_by["image"]),
            _split_rows(video_grid_thw, num_videos),
            [None] * len(input_ids) if attention_mask is None else attention_mask.split(1),
            interleaved,
            _split_rows(audio_seqlens, num_audios),
            _split_rows(second_per_grids, num_videos),
            strict=True,
        )
        position_ids, deltas = zip(*(super(AuroraQwen2_5Omni, self).get_rope_index(*row) for row in rows), strict=True)
        return torch.cat(position_ids, dim=1), torch.cat(deltas)

    @property
    def base_model(self) -> Any:
        """Multimodal merge and decoder without `lm_head`; the thinker's own `base_model` is the whole thinker."""
        return BackboneView(self, Qwen2_5OmniThinkerForConditionalGeneration.forward)


class Qwen2_5OmniFamily(MLLMFamily):
    """Qwen2.5-Omni reads the frames as a video and the sound as a separate audio part."""

    model_class = AuroraQwen2_5Omni
    tower_names = ("visual", "audio_tower")
    lora_target_modules = r"model\.layers\.\d+\.self_attn\.(q_proj|v_proj)"
    engine_prefix = "thinker."
    engine_architecture = "AuroraQwen2_5OmniForConditionalGeneration"

    def config_from(self, config: PretrainedConfig) -> PretrainedConfig:
        return getattr(config, "thinker_config", config)

    def engine_config(self, config: PretrainedConfig) -> PretrainedConfig:
        # The trainer sends quantised weights unpacked.
        left_out = ("segmenter", "clip_options", "quantization_config")
        thinker_config = {name: value for name, value in config.to_dict().items() if name not in left_out}
        # Head and embeddings are sent as two weights, whether they are tied here or LoRA has separated them.
        thinker_config["tie_word_embeddings"] = False
        thinker_config["text_config"] = {**thinker_config["text_config"], "tie_word_embeddings": False}
        full = Qwen2_5OmniConfig(thinker_config=thinker_config, enable_audio_output=False)
        full.architectures = ["Qwen2_5OmniForConditionalGeneration"]
        return full

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
        use_audio_in_video: bool = False,
    ) -> EncodedPrompt:
        images, videos = process_vision_info(list(messages), image_patch_size=processor.video_processor.patch_size)
        text = processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        has_audio_part = waveform is not None and not use_audio_in_video
        _check_placeholders(text, processor, images=images, videos=videos, num_audios=int(has_audio_part))
        prompt_ids = processor.tokenizer(text, add_special_tokens=False).input_ids
        _check_no_forgery(processor, messages, prompt_ids)
        _check_audible(waveform, processor, needed=use_audio_in_video)
        options: dict[str, Any] = {
            # process_vision_info has resized the frames already; sampling them again would drop some. The cap concerns
            # resizing, and is given only because transformers warns without it.
            "videos_kwargs": {
                "do_resize": False,
                "do_sample_frames": False,
                "fps": fps,
                "cap_pixels_per_frame": False,
                "use_audio_in_video": use_audio_in_video,
            },
            "audio_kwargs": {"max_length": _padded_length(waveform, processor.feature_extractor)},
        }
        inputs = processor(
            text=[text],
            images=images,
            videos=videos,
            audio=None if waveform is None else [waveform],
            **options,
            return_tensors="pt",
        )
        features = {k: torch.as_tensor(v) for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
        if waveform is not None:
            features |= _trimmed_audio(features)
        elif features:  # a text-only prompt runs no tower
            features |= _nothing_to_hear(processor.feature_extractor)
        expanded_ids = inputs["input_ids"][0].tolist()
        _check_expansion(processor, prompt_ids, expanded_ids)
        engine = EnginePrompt(
            prompt_ids=prompt_ids,
            messages=_without_media(messages),
            media=_engine_media(images, videos, waveform, fps=fps, processor=processor),
            processor_options=_engine_options(processor, fps=fps, use_audio_in_video=use_audio_in_video),
        )
        return EncodedPrompt(expanded_ids, features, engine)

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


def _split_rows(values: torch.Tensor | None, counts: list[int]) -> Sequence[torch.Tensor | None]:
    """Split a batch's values of media into rows, one value for each medium of the row."""
    return [None] * len(counts) if values is None else values.split(counts)


def _engine_media(
    images: Sequence | None, videos: Sequence | None, waveform: np.ndarray | None, *, fps: float, processor: Any
) -> dict[str, list[Any]]:
    """Return the media for vLLM, frames at the size that `process_vision_info` gave them."""
    media: dict[str, list[Any]] = {}
    if images:
        media["image"] = list(images)
    if videos:
        frames = [video.permute(0, 2, 3, 1).to(torch.uint8).numpy() for video in videos]  # whole numbers in float32
        media["video"] = [
            (clip, {"fps": fps, "total_num_frames": len(clip), "frames_indices": list(range(len(clip)))})
            for clip in frames
        ]
    if waveform is not None:
        media["audio"] = [(waveform, processor.feature_extractor.sampling_rate)]
    return media


def _engine_options(processor: ProcessorMixin, *, fps: float, use_audio_in_video: bool) -> dict[str, Any]:
    """Return the processor's options for vLLM; none varies by clip, since vLLM loads a processor for each new set."""
    options: dict[str, Any] = {"do_resize": False, "do_sample_frames": False, "fps": fps}
    if use_audio_in_video:
        # vLLM places frames and sound by an option of its own, whose default is one second a grid.
        seconds_per_grid = processor.video_processor.temporal_patch_size / fps
        options |= {"use_audio_in_video": True, "second_per_grid_ts": [seconds_per_grid]}
    return options


def _without_media(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the conversation with empty media parts: `{"type": "video", "video": [...]}` -> `{"type": "video"}`."""
    return [
        {**message, "content": [p if p["type"] == "text" else {"type": p["type"]} for p in message["content"]]}
        for message in messages
    ]


def _check_audible(waveform: np.ndarray | None, processor: ProcessorMixin, *, needed: bool) -> None:
    if waveform is None and needed:
        raise ValueError("use_audio_in_video is set for a clip without sound: set it to false for this sample")
    shortest = 2 * processor.feature_extractor.hop_length + 1
    if waveform is not None and len(waveform) < shortest:
        raise ValueError(f"the sound has {len(waveform)} samples, but the audio tower hears nothing below {shortest}")


def _check_placeholders(
    text: str, processor: ProcessorMixin, *, images: Sequence | None, videos: Sequence | None, num_audios: int
) -> None:
    """Raise a ValueError unless each medium has one placeholder; a reference, for example, could hold one as text."""
    for token, given in (
        (processor.image_token, len(images or ())),
        (processor.video_token, len(videos or ())),
        (processor.audio_token, num_audios),
    ):
        if text.count(token) != given:
            raise ValueError(f"the prompt has {text.count(token)} {token} where {given} are given: {text!r}")


def _check_no_forgery(
    processor: ProcessorMixin, messages: Sequence[Mapping[str, Any]], prompt_ids: Sequence[int]
) -> None:
    """Raise a `ControlTokenError` where a reference adds a control token to the prompt."""
    own = processor.apply_chat_template(own_messages(messages), tokenize=False, add_generation_prompt=True)
    contents = (message["content"] for message in messages)
    texts = (
        content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)
        for content in contents
    )
    check_prompt(processor.tokenizer, prompt_ids, own, " ".join(texts).strip())


def _check_expansion(processor: ProcessorMixin, prompt_ids: Sequence[int], expanded_ids: Sequence[int]) -> None:
    """Raise a `ControlTokenError` unless expanding the placeholders left all words unchanged.

    The processor has its own names for placeholders, such as `<|audio_placeholder|>`, which are plain text to the
    tokenizer and become real placeholders here.
    """
    names = [f"{medium}_token" for medium in ("audio", "image", "video")]
    names += [f"{kind}_{end}_token" for kind in ("audio", "vision") for end in ("bos", "eos")]
    media = set(processor.tokenizer.convert_tokens_to_ids([getattr(processor, name) for name in names]))
    words, expanded_words = ([token for token in ids if token not in media] for ids in (prompt_ids, expanded_ids))
    if words != expanded_words:
        raise ControlTokenError(
            "the reference holds what the processor reads as a medium's placeholder, such as '<|audio_placeholder|>': "
            "write it in other words"
        )


def _padded_length(waveform: np.ndarray | None, feature_extractor: Any) -> int | None:
    """Return the padded length in samples: one analysis window past the end gives the same frames as 300 s."""
    if waveform is None:
        return None
    hop = feature_extractor.hop_length
    return math.ceil((len(waveform) + feature_extractor.n_fft) / hop) * hop


def _trimmed_audio(features: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Trim the padding of a spectrogram: (1, mels, padded) -> (1, mels, T)."""
    length = int(features["feature_attention_mask"].sum())
    return {name: features[name][..., :length] for name in ("input_features", "feature_attention_mask")}


def _nothing_to_hear(feature_extractor: Any) -> dict[str, torch.Tensor]:
    """Return the audio tower's input for a clip without sound: the shortest spectrogram it accepts, fully masked."""
    return {
        "input_features": torch.zeros(1, feature_extractor.feature_size, SHORTEST_SPECTROGRAM),
        "feature_attention_mask": torch.zeros(1, SHORTEST_SPECTROGRAM, dtype=torch.int32),
    }
