"""What a clip takes of a Gemma 4, with or without towers, for estimates before anything is loaded."""

from __future__ import annotations

import math
from typing import Any

from aurora_rl.models.mllm.sizes import ClipPass, ClipSize, TowerPass

#: Largest number of tokens of a frame of a video, and pixels on a side of one.
FRAME_TOKENS, TOKEN_SIDE = 70, 48
#: Tokens around a frame, such as ` 00:01 `, its begin and its end; tokens of a second of sound, and around the sound.
FRAME_MARKS, SOUND_RATE, SOUND_MARKS = 9, 25, 2


def clip_pass(config: Any, clip: ClipSize) -> ClipPass:
    """Return what one clip takes of the prompt and of the towers.

    Args:
        config: config of the model.
        clip: sizes of the clip; its limits of pixels are not read.
    """
    vision, audio = config.vision_config, config.audio_config
    padded = clip.frames * FRAME_TOKENS
    sound = 0 if audio is None else math.ceil(clip.seconds * SOUND_RATE)
    towers = {"model.embed_vision": _projection(vision, padded)}
    if hasattr(vision, "num_hidden_layers"):
        patches = padded * vision.pooling_kernel_size**2
        towers["model.vision_tower"] = TowerPass(patches, vision.hidden_size, vision.num_hidden_layers)
    if audio is not None:
        towers["model.embed_audio"] = _projection(audio, sound)
    if hasattr(audio, "num_hidden_layers"):
        towers["model.audio_tower"] = TowerPass(sound, audio.hidden_size, audio.num_hidden_layers)
    tokens = clip.frames * (tokens_of_frame(*clip.size) + FRAME_MARKS) + (sound + SOUND_MARKS if sound else 0)
    return ClipPass(tokens, towers)


def tokens_of_frame(height: int, width: int) -> int:
    """Return the tokens of a frame, which is scaled up or down to as many squares as its form allows; 0 of no frame."""
    if not height or not width:
        return 0
    scale = math.sqrt(FRAME_TOKENS / (height * width))
    rows, columns = math.floor(height * scale), math.floor(width * scale)
    if not rows or not columns:  # a strip, one token wide
        return min(math.floor(max(height, width) / min(height, width)), FRAME_TOKENS)
    return rows * columns


def _projection(part: Any, tokens: int) -> TowerPass:
    return TowerPass(tokens, getattr(part, "output_proj_dims", None) or part.hidden_size, 1)
