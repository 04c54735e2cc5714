"""What a clip takes of a prompt and of the towers, for estimates before anything is loaded; no torch is imported."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

#: Upper limit of a frame's area, in patches after merging, where the arguments give none: the usual processors' own.
DEFAULT_MAX_PATCHES = 768
#: Spectrogram columns a second (16 kHz, hop 160).
MEL_RATE = 100
#: Length of a window of Whisper's kind, to which shorter sounds are padded.
WINDOW_SECONDS = 30


@dataclasses.dataclass(frozen=True)
class ClipSize:
    """Sizes of one clip.

    Attributes:
        frames: F, number of frames.
        size: (H, W) of a frame in pixels.
        seconds: length of the sound, in seconds.
        min_pixels: lower limit of a frame's area for the vision tower; None for the processor's own.
        max_pixels: upper limit of a frame's area for the vision tower; None for the processor's own.
    """

    frames: int
    size: tuple[int, int]
    seconds: float
    min_pixels: int | None = None
    max_pixels: int | None = None


@dataclasses.dataclass(frozen=True)
class SoundRate:
    """How an audio tower shortens a sound.

    Attributes:
        columns_per_entry: spectrogram columns for one token of its layers.
        columns_per_token: spectrogram columns for one token of the prompt.
    """

    columns_per_entry: float = 2  # a convolution of stride 2
    columns_per_token: float = 4  # and the mean of two


@dataclasses.dataclass(frozen=True)
class TowerPass:
    """A tower's work.

    Attributes:
        tokens: number of tokens that pass its layers.
        width: width of its layers.
        layers: number of its layers.
        merged: number of them that its mergers make one token of the prompt from.
    """

    tokens: float
    width: int
    layers: int
    merged: int = 1


@dataclasses.dataclass(frozen=True)
class ClipPass:
    """What one clip takes.

    Attributes:
        prompt_tokens: number of tokens of its media in the prompt.
        towers: work of each tower, by the tower's dotted name.
    """

    prompt_tokens: int
    towers: Mapping[str, TowerPass]

    def times(self, count: int) -> dict[str, TowerPass]:
        """Return the towers' work for `count` clips."""
        return {name: dataclasses.replace(tower, tokens=count * tower.tokens) for name, tower in self.towers.items()}


def usual_pass(
    config: Any,
    clip: ClipSize,
    tower_names: tuple[str, ...],
    *,
    sound_rate: SoundRate = SoundRate(),
    tokens_of_time: int = 0,
) -> ClipPass:
    """Return what a clip takes of a model whose configs have the usual names.

    Args:
        config: config of the model: its `vision_config` merges patches, its `audio_config`, if any, is like Whisper's.
        clip: sizes of the clip.
        tower_names: dotted names of the vision tower and, if there is one, of the audio tower.
        sound_rate: how the audio tower shortens a sound.
        tokens_of_time: tokens of text before the patches of each `temporal_patch_size` frames.
    """
    vision = config.vision_config
    grids, tokens = _video_tokens(vision, clip)
    merged = vision.spatial_merge_size**2
    towers = {tower_names[0]: TowerPass(tokens * merged, vision.hidden_size, vision.depth, merged)}
    tokens += grids * tokens_of_time
    audio = getattr(config, "audio_config", None)
    if audio is not None and len(tower_names) > 1:
        columns = math.ceil(clip.seconds * MEL_RATE)
        tokens += math.ceil(columns / sound_rate.columns_per_token)
        entries = columns / sound_rate.columns_per_entry
        towers[tower_names[1]] = TowerPass(entries, audio.d_model, audio.encoder_layers)
    return ClipPass(tokens, towers)


def num_features(config: Any, a_clip: ClipPass) -> float:
    """Return how many features the towers give for a clip: one for each of its tokens, and those of deeper layers."""
    deeper = len(getattr(getattr(config, "vision_config", None), "deepstack_visual_indexes", None) or ())
    seen = sum(tower.tokens / tower.merged for tower in a_clip.towers.values() if tower.merged > 1)
    return a_clip.prompt_tokens + deeper * seen


def windowed_pass(config: Any, clip: ClipSize, tower_name: str) -> ClipPass:
    """Return what a clip takes of a model that sees nothing and hears a sound in windows of 30 s, the last one padded.

    Args:
        config: config of the model; its `audio_config` is like Whisper's.
        clip: sizes of the clip.
        tower_name: dotted name of the audio tower.
    """
    audio, rate = config.audio_config, SoundRate()
    windows = max(1, math.ceil(clip.seconds / WINDOW_SECONDS))
    entries = windows * WINDOW_SECONDS * MEL_RATE / rate.columns_per_entry
    tower = TowerPass(entries, audio.hidden_size, audio.num_hidden_layers)
    return ClipPass(math.ceil(clip.seconds * MEL_RATE / rate.columns_per_token), {tower_name: tower})


def _video_tokens(vision: Any, clip: ClipSize) -> tuple[int, int]:
    """Return how many grids `temporal_patch_size` frames each form, shrunk to `max_pixels`, and their tokens."""
    factor = vision.patch_size * vision.spatial_merge_size
    limit = clip.max_pixels or DEFAULT_MAX_PATCHES * factor**2
    area = min(clip.size[0] * clip.size[1], limit)
    area = max(area, clip.min_pixels or 0)
    grids = math.ceil(clip.frames / vision.temporal_patch_size)
    return grids, grids * math.ceil(area / factor**2)
