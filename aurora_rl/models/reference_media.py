"""References that come with files of their own: a recorded sentence, a sound or a picture that they point to.

A prompt has one video and one sound, whose towers run once a clip. So the model is given a longer clip, and told so:

    frames of the clip, the reference's picture
    sound of the clip, a second of silence, the reference's recording, ...

The head still predicts in the frames of the clip alone. An ablation that mutes a clip leaves the recordings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from aurora_rl.data.containers import SAMPLING_RATE, MediaError
from aurora_rl.data.media import read_picture, read_waveform
from aurora_rl.data.message_parts import is_picture
from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.models.mllm import MLLMFamily

#: Samples of silence before each recording.
PAUSE = SAMPLING_RATE
#: Frames that a vision tower of videos joins to one: a picture must not be joined to a frame of the clip.
JOINED_FRAMES = 2


def check_reference_media(family: MLLMFamily, sample: AVSample, *, drop_sound: bool = False) -> None:
    """Check that a model can be given the files of a reference.

    Args:
        family: the model's family.
        sample: the row.
        drop_sound: whether the model is given no sound.

    Raises:
        MediaError: naming the row, its file, why the model is not given it, and what can be done.
    """
    for path in sample.reference_media:
        name, why = type(family).__name__, None
        if is_picture(path):
            why = "it sees nothing" if family.sees is None else None
        elif not family.hears:
            why = "it has no ears"
        elif drop_sound:
            why = "drop_sound is true"
        if why is not None:
            kind = "picture" if is_picture(path) else "recording"
            raise MediaError(
                f"sample {sample.key} refers by the {kind} {Path(path).name}, which {name} cannot be given: {why}. "
                "Choose `benchmark: omni_avs`, which leaves such references out, another model, or a chat endpoint "
                "(aurora-rl agents)"
            )


def has_recordings(sample: AVSample) -> bool:
    """Tell whether a recording belongs to a row's reference, which is then heard after the clip's sound."""
    return not all(map(is_picture, sample.reference_media))


def sentence_about_media(sample: AVSample) -> str:
    """Return what a prompt says of the reference's files, before its question; nothing for words alone."""
    pictures = [path for path in sample.reference_media if is_picture(path)]
    recordings = len(sample.reference_media) - len(pictures)
    sentences = []
    if pictures:
        sentences.append("The last picture is none of the clip: it belongs to the reference. ")
    if recordings == 1:
        sentences.append("What is heard last, after a second of silence, belongs to the reference. ")
    elif recordings:
        sentences.append(
            f"What is heard last are {recordings} recordings, each after a second of silence, that belong to the "
            "reference. "
        )
    return "".join(sentences)


def with_reference_media(family: MLLMFamily, sample: AVSample, clip: AVClip) -> AVClip:
    """Return the clip as the model is given it, the reference's files behind its own media.

    Pictures are made as large as the clip's frames, with black margins.

    Raises:
        MediaError: if a file cannot be read; the error names it.
    """
    if not sample.reference_media:
        return clip
    frames, waveform = list(clip.frames), clip.waveform
    for path in sample.reference_media:
        if not is_picture(path):
            waveform = _followed_by(waveform, read_waveform(path))
            continue
        if frames and family.sees == "video":
            frames += [frames[-1]] * (-len(frames) % JOINED_FRAMES)
        frames.append(_as_large(read_picture(path), frames))
    return dataclasses.replace(clip, frames=np.stack(frames) if frames else clip.frames, waveform=waveform)


def _followed_by(waveform: np.ndarray | None, recording: np.ndarray) -> np.ndarray:
    own = np.zeros(0, np.float32) if waveform is None else waveform
    return np.concatenate([own, np.zeros(PAUSE, np.float32), recording])


def _as_large(picture: np.ndarray, frames: Sequence[np.ndarray]) -> np.ndarray:
    if not frames:
        return picture
    height, width = frames[0].shape[:2]
    return np.asarray(ImageOps.pad(Image.fromarray(picture), (width, height), Image.Resampling.LANCZOS))
