"""Turns a conversation with frames and sound into the inputs of the thinker, and the inputs of clips into a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from qwen_vl_utils import process_vision_info
from transformers import PretrainedConfig, ProcessorMixin

from aurora_rl.models.control_tokens import ControlTokenError, check_prompt, own_messages
from aurora_rl.models.mllm.base import EncodedPrompt, EnginePrompt

#: Inputs of the towers. The other media tensors describe these, and the language model needs them row by row.
TOWER_INPUTS = ("pixel_values", "pixel_values_videos", "input_features")
#: Frames of the shortest spectrogram, for which the audio tower's strides leave one feature.
SHORTEST_SPECTROGRAM = 3


def multimodal_token_ids(config: PretrainedConfig) -> list[int]:
    """Return the ids of placeholders and delimiters; see `MLLMFamily.multimodal_token_ids`."""
    names = ("audio", "image", "video", "audio_start", "audio_end", "vision_start", "vision_end")
    ids = {getattr(config, f"{name}_token_id", None) for name in names}
    return sorted(token_id for token_id in ids if token_id is not None)


def encode(
    processor: ProcessorMixin,
    messages: Sequence[Mapping[str, Any]],
    *,
    waveform: np.ndarray | None,
    fps: float,
    use_audio_in_video: bool,
) -> EncodedPrompt:
    """Run the processor on one conversation; see `MLLMFamily.encode`."""
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
    features: Sequence[Mapping[str, torch.Tensor]], media_index: Sequence[int]
) -> dict[str, torch.Tensor]:
    """Join media tensors into one batch; see `MLLMFamily.collate_features`."""
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
