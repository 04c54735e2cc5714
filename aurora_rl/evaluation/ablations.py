"""Ablations remove a modality to show that the model's answers depend on video, sound and text.

Each ablation changes the input only; scores are taken against the unchanged truth. A row that lacks the modality stays
as it is, which `Ablation.changes` tells.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from aurora_rl.data.clip_reader import ClipReader
from aurora_rl.data.sample import AVClip, AVSample


def mute(clip: AVClip) -> AVClip:
    """Replace the clip's sound by digital silence; a clip without sound is returned unchanged."""
    return clip if clip.waveform is None else dataclasses.replace(clip, waveform=np.zeros_like(clip.waveform))


def blank(clip: AVClip) -> AVClip:
    """Replace every frame of the clip by a uniform mid-grey."""
    return dataclasses.replace(clip, frames=np.full_like(clip.frames, 128))


def shuffle_text(samples: Sequence[AVSample]) -> list[AVSample]:
    """Give each sample another one's reference, or question with its choices, half the list away; the truth stays."""
    shift = (len(samples) + 1) // 2
    others = [samples[(index + shift) % len(samples)] for index in range(len(samples))]
    return [
        dataclasses.replace(sample, reference=other.reference, choices=other.choices)
        for sample, other in zip(samples, others, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A change of the media, of the questions, or none.

    Attributes:
        change_clip: function from a loaded clip to the model's input.
        change_samples: function from the samples, in order, to those that are asked.
        changes_frames: whether `change_clip` changes the frames, so that cached image embeddings are invalid.
        changes: function that tells whether a row has the modality that is taken away.
        what: name of that modality, for messages.
        read: function that loads a clip.
    """

    change_clip: Callable[[AVClip], AVClip] = lambda clip: clip
    change_samples: Callable[[Sequence[AVSample]], Sequence[AVSample]] = lambda samples: samples
    changes_frames: bool = False
    changes: Callable[[AVSample], bool] = lambda sample: True
    what: str = "question"
    read: Callable[[AVSample], AVClip] = dataclasses.field(default_factory=ClipReader, repr=False, compare=False)

    def load(self, sample: AVSample) -> AVClip:
        return self.change_clip(self.read(sample))


ABLATIONS = {
    "audio_muted": Ablation(change_clip=mute, changes=lambda sample: sample.audio_path is not None, what="sound"),
    "frames_blanked": Ablation(
        change_clip=blank, changes_frames=True, changes=lambda sample: sample.num_frames > 0, what="frames"
    ),
    "text_shuffled": Ablation(change_samples=shuffle_text),
}
