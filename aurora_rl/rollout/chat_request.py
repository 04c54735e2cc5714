"""Requests to `vllm serve`: a conversation that holds its media, as data URLs without loss.

The server decodes the media, expands the placeholders and runs the processor as an engine in our own process would, so
pixels, samples and options must arrive unchanged.

    separate sound      frames as a list of PNGs, the sound as a float32 WAV
    interleaved sound   frames and sound in one Matroska file (FFV1, float32 PCM): vLLM takes the sound out of the video
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image

from aurora_rl.models.mllm.base import EnginePrompt

#: Options by which vLLM keeps every frame; by default it takes 32 of a list, or samples a file at a rate.
MEDIA_IO_OPTIONS = {"video": {"num_frames": -1, "video_backend": "opencv"}}


def chat_request(prompt: EnginePrompt) -> dict[str, Any]:
    """Return the fields of a request to `/v1/chat/completions` that hold the prompt.

    Raises:
        ValueError: if the conversation's media parts and the media do not match, or more was said after it.
    """
    if prompt.said:
        raise ValueError(
            f"{len(prompt.said)} tokens were said after the conversation, but a server's chat endpoint takes text, and "
            "could read other tokens than were sampled: take further turns with vllm_mode colocate"
        )
    media = {modality: iter(items) for modality, items in prompt.media.items()}
    interleaved = bool(prompt.processor_options.get("use_audio_in_video", False))
    messages = [
        {**message, "content": [_filled(part, media, interleaved=interleaved) for part in message["content"]]}
        for message in prompt.messages
    ]
    left = [modality for modality, items in media.items() if next(items, None) is not None]
    if left:
        raise ValueError(f"the conversation has too few parts for its {' and '.join(left)}: {prompt.messages}")
    if not prompt.media:
        return {"messages": messages}
    return {
        "messages": messages,
        "mm_processor_kwargs": prompt.processor_options,
        "media_io_kwargs": MEDIA_IO_OPTIONS,
    }


def _filled(part: dict[str, Any], media: dict[str, Iterator[Any]], *, interleaved: bool) -> dict[str, Any]:
    """Put the next medium of its kind, taken from `media`, into a content part."""
    kind = part["type"]
    if kind == "text":
        return part
    item = next(media.get(kind, iter(())), None)
    sound = next(media.get("audio", iter(())), None) if kind == "video" and interleaved else None
    if item is None or (sound is None and kind == "video" and interleaved):
        raise ValueError(f"the conversation has more {kind} parts than there are media for")
    if kind == "image":
        return _url_part("image_url", f"data:image/png;base64,{_base64(_png(item))}")
    if kind == "audio":
        return _url_part("audio_url", f"data:audio/wav;base64,{_base64(_wav(*item))}")
    frames, _ = item
    if sound is not None:
        return _url_part("video_url", f"data:video/x-matroska;base64,{_base64(_matroska(frames, *sound))}")
    pngs = ",".join(_base64(_png(Image.fromarray(frame))) for frame in frames)
    return _url_part("video_url", f"data:video/jpeg;base64,{pngs}")  # vLLM's name for a list of images of any kind


def _url_part(kind: str, url: str) -> dict[str, Any]:
    return {"type": kind, kind: {"url": url}}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _wav(waveform: np.ndarray, sampling_rate: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sampling_rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def _matroska(frames: np.ndarray, waveform: np.ndarray, sampling_rate: int) -> bytes:
    """Encode frames (F, H, W, 3) uint8 and a waveform (N,) float32 as a video file.

    Its frame rate has no meaning, as the true one is a processor option. But OpenCV, which vLLM decodes with, estimates
    the number of frames from rate and duration, and drops the only frame of a file if it expects less than two.
    """
    rate = math.ceil(2 * sampling_rate / len(waveform))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        video = container.add_stream("ffv1", rate=rate)
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "bgr0"  # RGB, not YUV: nothing is rounded
        audio = container.add_stream("pcm_f32le", rate=sampling_rate, layout="mono")
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(video.encode(None))
        sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform[None]), format="flt", layout="mono")
        sound.sample_rate = sampling_rate
        container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
    return buffer.getvalue()
