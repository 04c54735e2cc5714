"""Frames and sound of a clip as parts of a chat message, in the form of OpenAI's protocol."""

from __future__ import annotations

import base64
import dataclasses
import io
import wave
from pathlib import PurePath
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from aurora_rl.data.containers import SAMPLING_RATE, MediaError
from aurora_rl.data.media import read_clip_frames, read_clip_sound, read_picture, read_waveform
from aurora_rl.data.sample import AVSample

Media = Literal["frames+audio", "frames", "none"]
MEDIA = get_args(Media)
JPEG_QUALITY = 90
#: Ends of the names of pictures.
PICTURES = (".jpg", ".jpeg", ".png", ".webp")


@dataclasses.dataclass
class MediaArguments:
    """The media of a clip that are sent.

    Attributes:
        media: "frames+audio", "frames" for models without audio, or "none" for models of text only.
        max_side: longest side of a frame, in pixels; larger frames are scaled down.
    """

    media: Media = dataclasses.field(
        default="frames+audio", metadata={"help": f"What of a clip is sent: {', '.join(MEDIA)}."}
    )
    max_side: int = dataclasses.field(default=512, metadata={"help": "Longest side of a sent frame, in pixels."})

    def __post_init__(self) -> None:
        if self.media not in MEDIA:
            raise ValueError(f"media is {self.media!r}: choose from {', '.join(MEDIA)}")
        if self.max_side < 1:
            raise ValueError(f"max_side is {self.max_side}: it must be above 0")


def media_parts(sample: AVSample, media: MediaArguments) -> list[dict[str, Any]]:
    """Encode frames and sound of a clip as parts of a message; sound alone has no part for frames.

    Args:
        sample: row, whose files are read.
        media: media that are sent.

    Raises:
        MediaError: if a file cannot be read; the error names it.
    """
    if media.media == "none":
        return []
    of_reference = reference_parts(sample, media)
    frames = frame_parts(read_clip_frames(sample), sample.fps, media) if sample.num_frames else []
    if media.media == "frames":
        return [*frames, *of_reference]
    return [*frames, *sound_parts(read_clip_sound(sample)), *of_reference]


def is_picture(path: str) -> bool:
    """Tell a file of a reference that is a picture from one that is a sound, by its name."""
    return PurePath(path).suffix.lower() in PICTURES


def reference_parts(sample: AVSample, media: MediaArguments) -> list[dict[str, Any]]:
    """Encode the files that belong to a row's reference, each after words that say so; none for words alone.

    Raises:
        MediaError: if a file cannot be read, or the media that are sent leave it out; the error names the row.
    """
    parts: list[dict[str, Any]] = []
    for path in sample.reference_media:
        wanted = ("frames+audio", "frames") if is_picture(path) else ("frames+audio",)
        if media.media not in wanted:
            raise MediaError(
                f"sample {sample.key} refers by the file {path}, which media {media.media!r} leaves out: set it to "
                f"{wanted[-1]!r}, or choose a benchmark whose references are words"
            )
        said = f"The {'picture' if is_picture(path) else 'recording'} that comes with the reference:"
        parts.append({"type": "text", "text": said})
        parts.append(_part_of_file(path, media))
    return parts


def _part_of_file(path: str, media: MediaArguments) -> dict[str, Any]:
    return (
        _image_part(read_picture(path), max_side=media.max_side)
        if is_picture(path)
        else _sound_part(read_waveform(path))
    )


def _sound_part(waveform: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(_wav(waveform)).decode("ascii")
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def sound_parts(waveform: np.ndarray | None) -> list[dict[str, Any]]:
    """Encode a waveform (N,) as parts of a message; without one they say that there is no sound."""
    sound: list[dict[str, Any]] = [{"type": "text", "text": "The clip has no sound."}]
    if waveform is not None:
        sound = [{"type": "text", "text": "Its sound:"}, _sound_part(waveform)]
    return sound


def frame_parts(frames: np.ndarray, fps: float, media: MediaArguments) -> list[dict[str, Any]]:
    """Encode frames (F, H, W, 3) uint8 as parts of a message, after one that says when they are."""
    said = {"type": "text", "text": f"The frames of the clip, one every {1 / fps:g} s:"}
    return [said, *(_image_part(frame, max_side=media.max_side) for frame in frames)]


def _image_part(frame: np.ndarray, *, max_side: int) -> dict[str, Any]:
    image = Image.fromarray(frame)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)  # does not enlarge smaller ones
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}


def _wav(waveform: np.ndarray) -> bytes:
    """Encode a waveform (N,) in [-1, 1] as a file of 16 bits, which every endpoint reads."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLING_RATE)
        file.writeframes(np.round(waveform.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()
