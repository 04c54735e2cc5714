"""Turns a conversation with frames and sound into a model's inputs, and the inputs of clips into a batch.

Here stands what families have in common; where they differ, they are asked (`Senses`).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import ProcessorMixin

from aurora_rl.models.control_tokens import ControlTokenError, check_prompt, own_messages
from aurora_rl.models.mllm.prompts import EncodedPrompt, EnginePrompt
from aurora_rl.models.mllm.senses import Senses

logger = logging.getLogger(__name__)


def encode(
    family: Senses,
    processor: ProcessorMixin,
    messages: Sequence[Mapping[str, Any]],
    *,
    waveform: np.ndarray | None,
    fps: float,
    use_audio_in_video: bool,
    tools: Sequence[Mapping[str, Any]] = (),
) -> EncodedPrompt:
    """Run a family's processor on one conversation; see `MLLMFamily.encode`."""
    is_of_clip = _has_media(messages)  # of a silent one, too, of whose frames the family may see nothing
    messages = sensed_messages(family, messages)
    _check_sound(family, processor, waveform, needed=use_audio_in_video)
    if waveform is not None:
        waveform = np.pad(waveform, (0, -len(waveform) % family.samples_per_unit(processor)))
    images, videos = family.read_vision(processor, messages)
    shown_tools = _tool_options(family, processor, tools)
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **shown_tools)
    num_audios = int(waveform is not None and not use_audio_in_video)
    _check_placeholders(text, processor, image=len(images or ()), video=len(videos or ()), audio=num_audios)
    prompt_ids = processor.tokenizer(text, add_special_tokens=False).input_ids
    _check_no_forgery(processor, messages, prompt_ids, shown_tools)
    media = {"images": images, "videos": videos, "audio": None if waveform is None else [waveform]}
    num_frames = len(videos[0]) if videos else 0
    options = family.processor_options(
        processor, num_frames=num_frames, fps=fps, waveform=waveform, use_audio_in_video=use_audio_in_video
    )
    given = {name: values for name, values in media.items() if values}
    # The template has written the tokens that a tokenizer would add, such as the one that begins a sequence.
    inputs = processor(text=[text], add_special_tokens=False, **given, **options, return_tensors="pt")
    expanded_ids = inputs["input_ids"][0].tolist()
    _check_expansion(processor, prompt_ids, expanded_ids, family.media_token_ids(processor))
    if waveform is not None:
        _check_is_heard(family, processor, expanded_ids)
    features = {
        name: torch.as_tensor(value)
        for name, value in inputs.items()
        if name not in family.token_inputs and _is_numeric(value)
    }
    features = family.trim_features(features)
    if waveform is None and is_of_clip and family.hears:  # a text-only prompt runs no tower
        features |= family.silence(processor)
    engine = EnginePrompt(
        prompt_ids=prompt_ids,
        messages=_without_media(messages),
        media=_engine_media(family, processor, images, videos, waveform, fps=fps),
        processor_options=family.engine_options(processor, fps=fps, use_audio_in_video=use_audio_in_video),
    )
    return EncodedPrompt(expanded_ids, features, engine)


def _tool_options(family: Senses, processor: ProcessorMixin, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the arguments of the chat template that show tools; a ValueError if the family has no way to."""
    if not tools:
        return {}
    if family.tool_format is None:
        raise ValueError(f"{type(family).__name__} has no tool_format, by which its prompts show tools: leave them out")
    return family.tool_format.options(processor, tools)


def sensed_messages(family: Senses, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a conversation as the family sees and hears it: frames as a video, as images or not at all."""

    def sensed(part: Mapping[str, Any]) -> list[Any]:
        if part["type"] != "video" or family.sees == "video":
            return [part]
        return [] if family.sees is None else [{"type": "image", "image": frame} for frame in part["video"]]

    return [
        {**message, "content": content}
        if isinstance(content := message["content"], str)
        else {**message, "content": [kept for part in content for kept in sensed(part)]}
        for message in messages
    ]


def _has_media(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Tell a conversation about a clip from one in words alone."""
    contents = (message["content"] for message in messages if not isinstance(message["content"], str))
    return any(part["type"] != "text" for content in contents for part in content)


def vision_as_given(messages: Sequence[Mapping[str, Any]]) -> tuple[Any, Any]:
    """Return images and videos (F, H, W, 3) of a conversation at their own size; None where there are none."""
    contents = (message["content"] for message in messages)
    parts = [part for content in contents if not isinstance(content, str) for part in content]
    if any({"min_pixels", "max_pixels"} & part.keys() for part in parts):
        _warn_of_limits()
    images = [part["image"] for part in parts if part["type"] == "image"]
    videos = [_whole_numbers(part["video"]) for part in parts if part["type"] == "video"]
    return images or None, videos or None


@functools.cache
def _warn_of_limits() -> None:
    logger.warning("the model's processor scales frames to sizes of its own: min_pixels and max_pixels change nothing")


def collate_features(features: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Join media tensors into one batch, one entry a clip; see `MLLMFamily.collate_features`."""
    if len({frozenset(clip) for clip in features}) > 1:
        raise ValueError(f"clips of one batch must all have the same media: {[sorted(clip) for clip in features]}")
    # Positions of patches are -1 where there is no patch, in the processors that pad.
    return {
        name: _joined([clip[name] for clip in features], -1 if "position_ids" in name else 0) for name in features[0]
    }


def _joined(tensors: Sequence[torch.Tensor], fill: int) -> torch.Tensor:
    """Join tensors along their first dimension, padded at the end of the others."""
    if tensors[0].dim() < 2:
        return torch.cat(list(tensors))
    longest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [size - own for size, own in zip(longest, tensor.shape[1:], strict=True)]
        pads = [pad for amount in reversed(missing) for pad in (0, amount)]
        padded.append(nn.functional.pad(tensor, pads, value=fill) if any(pads) else tensor)
    return torch.cat(padded)


def _is_numeric(value: Any) -> bool:
    """Tell tensors from what a processor returns beside them, such as metadata of a video."""
    return isinstance(value, torch.Tensor) or (
        isinstance(value, (list, np.ndarray)) and np.asarray(value).dtype.kind in "biuf"
    )


def _engine_media(
    family: Senses,
    processor: Any,
    images: Sequence | None,
    videos: Sequence | None,
    waveform: np.ndarray | None,
    *,
    fps: float,
) -> dict[str, list[Any]]:
    """Return the media for vLLM, frames at the size that the model sees."""
    media: dict[str, list[Any]] = {}
    if images:
        media["image"] = list(images)
    if videos:
        clips = [_whole_numbers(video) for video in videos]
        media["video"] = [(clip, {**family.video_metadata(len(clip), fps), **family.engine_metadata}) for clip in clips]
    if waveform is not None:
        media["audio"] = [(waveform, processor.feature_extractor.sampling_rate)]
    return media


def _whole_numbers(video: Any) -> np.ndarray:
    """Return frames (F, H, W, 3) uint8, of whole numbers in a float32 tensor (F, 3, H, W) or of pictures."""
    if isinstance(video, torch.Tensor):
        return video.permute(0, 2, 3, 1).to(torch.uint8).numpy()
    return np.stack([np.asarray(frame) for frame in video])


def _without_media(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the conversation with empty media parts: `{"type": "video", "video": [...]}` -> `{"type": "video"}`."""
    return [
        {**message, "content": content}
        if isinstance(content := message["content"], str)
        else {**message, "content": [part if part["type"] == "text" else {"type": part["type"]} for part in content]}
        for message in messages
    ]


def _check_sound(family: Senses, processor: Any, waveform: np.ndarray | None, *, needed: bool) -> None:
    if waveform is None and needed:
        raise ValueError("use_audio_in_video is set for a clip without sound: set it to false for this sample")
    if waveform is None:
        return
    if not family.hears:
        raise ValueError(
            f"{type(family).__name__} has no ears, but the clip has sound: set drop_sound to true, which trains and "
            "answers without it, or choose a model that hears"
        )
    shortest = family.shortest_sound(processor)
    if len(waveform) < shortest:
        raise ValueError(f"the sound has {len(waveform)} samples, but the audio tower hears nothing below {shortest}")
    longest = family.longest_sound(processor)
    if longest is not None and len(waveform) > longest:
        rate = processor.feature_extractor.sampling_rate
        raise ValueError(
            f"the sound lasts {len(waveform) / rate:.1f} s, but {type(family).__name__} hears no more than "
            f"{longest / rate:.1f} s of it: cut the clip, or choose a model without such a limit"
        )


def _check_placeholders(text: str, processor: ProcessorMixin, **given: int) -> None:
    """Raise a ValueError unless each medium has one placeholder; a reference, for example, could hold one as text."""
    for modality, count in given.items():
        token = getattr(processor, f"{modality}_token", None)
        if token is not None and text.count(token) != count:
            raise ValueError(f"the prompt has {text.count(token)} {token} where {count} are given: {text!r}")


def _check_is_heard(family: Senses, processor: Any, expanded_ids: Sequence[int]) -> None:
    """Raise a ValueError if the processor has left the sound out, as one does that cannot place it between frames."""
    token = getattr(processor, "audio_token", None)
    if token is not None and processor.tokenizer.convert_tokens_to_ids(token) not in expanded_ids:
        raise ValueError(
            f"{type(family).__name__} has no place for sound between the frames: set use_audio_in_video to false"
        )


def _check_no_forgery(
    processor: ProcessorMixin,
    messages: Sequence[Mapping[str, Any]],
    prompt_ids: Sequence[int],
    shown_tools: Mapping[str, Any],
) -> None:
    """Raise a `ControlTokenError` where a reference adds a control token to the prompt."""
    own = processor.apply_chat_template(
        own_messages(messages), tokenize=False, add_generation_prompt=True, **shown_tools
    )
    contents = (message["content"] for message in messages)
    texts = (
        content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)
        for content in contents
    )
    check_prompt(processor.tokenizer, prompt_ids, own, " ".join(texts).strip())


def _check_expansion(
    processor: ProcessorMixin, prompt_ids: Sequence[int], expanded_ids: Sequence[int], media: Sequence[int]
) -> None:
    """Raise a `ControlTokenError` unless expanding the placeholders left all words in place.

    The processor has its own names for placeholders, such as `<|audio_placeholder|>`, which are plain text to the
    tokenizer and become real placeholders here. It may add words of its own, such as the time of a frame.
    """
    left_out = set(media)
    words, expanded_words = ([token for token in ids if token not in left_out] for ids in (prompt_ids, expanded_ids))
    if words == expanded_words:
        return
    text, expanded = (processor.tokenizer.decode(ids, skip_special_tokens=False) for ids in (words, expanded_words))
    rest = iter(expanded)
    if not all(character in rest for character in text):
        raise ControlTokenError(
            "the reference holds what the processor reads as a medium's placeholder, such as '<|audio_placeholder|>': "
            "write it in other words"
        )
