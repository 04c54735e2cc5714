"""What a model still answers when a modality is taken away: proof that it watches, listens and reads.

Each ablation changes the input only; scores are taken against the unchanged truth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from aurora_rl.data.clip_reader import ClipReader
from aurora_rl.data.sample import AVClip, AVSample


def mute(clip: AVClip) -> AVClip:
    """The clip with digital silence; one without sound stays as it is."""
    return clip if clip.waveform is None else dataclasses.replace(clip, waveform=np.zeros_like(clip.waveform))


def blank(clip: AVClip) -> AVClip:
    """The clip with every frame a uniform mid-grey."""
    return dataclasses.replace(clip, frames=np.full_like(clip.frames, 128))


def shuffle_text(samples: Sequence[AVSample]) -> list[AVSample]:
    """Each sample asked another's question: references move half the list on, the truth stays."""
    shift = (len(samples) + 1) // 2
    return [
        dataclasses.replace(sample, reference=samples[(index + shift) % len(samples)].reference)
        for index, sample in enumerate(samples)
    ]


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A change of the media, of the questions, or of neither.

    Attributes:
        change_clip: maps a loaded clip to what the model gets.
        change_samples: maps the samples, in order, to those that are asked.
        changes_frames: whether `change_clip` changes what is seen, so that no cache of image embeddings holds.
        read: loads a clip.
    """

    change_clip: Callable[[AVClip], AVClip] = lambda clip: clip
    change_samples: Callable[[Sequence[AVSample]], Sequence[AVSample]] = lambda samples: samples
    changes_frames: bool = False
    read: Callable[[AVSample], AVClip] = dataclasses.field(default_factory=ClipReader, repr=False, compare=False)

    def load(self, sample: AVSample) -> AVClip:
        return self.change_clip(self.read(sample))


ABLATIONS = {
    "audio_muted": Ablation(change_clip=mute),
    "frames_blanked": Ablation(change_clip=blank, changes_frames=True),
    "text_shuffled": Ablation(change_samples=shuffle_text),
}
