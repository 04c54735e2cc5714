"""Sounds without pictures: one, two or three things sound at a time under noise, with a question about their order.

The files have AVQA's form (`benchmark: avqa`), so that recipes about sound alone walk the path of the published data:

    avqa_<split>.jsonl        questions, see `data.question_tables`
    chains.jsonl              gold chains of the split sft, one free and one in four parts, see `data.chains`
    sounds/<split>-00017.wav

Difficulty is the number of sounds and the loudness of the noise, both drawn for each clip; so a model is always right
about some rows, never about others, and now and then about most.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aurora_rl.files.atomic import whole_folder
from aurora_rl.synthetic.config import TRAINED_CATEGORIES, SyntheticConfig
from aurora_rl.synthetic.questions import NUM_CHOICES, QUESTIONS
from aurora_rl.synthetic.references import heard_step
from aurora_rl.synthetic.scene import SoundEvent, render_waveform
from aurora_rl.synthetic.writer import check_replaceable, write_records, write_wave
from aurora_rl.tasks.think_answer import FREE_STEP

#: Length and sampling rate of a clip.
MEDIA = SyntheticConfig()
SPLITS = ("sft", "train", "test")
#: Numbers of sounds of a clip, the name of each being the kind of its question.
NUMBERS = {1: "one", 2: "two", 3: "three"}
#: Standard deviations between which the noise is drawn, evenly in decibels: -56 to -10 dBFS; sounds have -24 to -14.
NOISE = (1.5e-3, 0.3)
CHAINS_FILE = "chains.jsonl"


@dataclasses.dataclass(frozen=True)
class SoundsConfig:
    """Numbers of clips, one question each; the fields are also the command line of `data_prep/make_sounds.py`.

    A clip depends on its split, its index and the seed alone.

    Raises:
        ValueError: if a number is negative.
    """

    sft: int = dataclasses.field(default=4000, metadata={"help": "clips of the split with gold chains, for SFT"})
    train: int = dataclasses.field(default=1000, metadata={"help": "clips of the train split, for pass rates and GRPO"})
    test: int = dataclasses.field(default=300, metadata={"help": "clips of the test split"})
    seed: int = dataclasses.field(default=0, metadata={"help": "seed of all clips"})

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"{name}={value} is too small: give at least 0")


@dataclasses.dataclass(frozen=True)
class SoundClip:
    """A clip in memory, and the question about it.

    Attributes:
        waveform: (num_samples,) float32 in [-1, 1].
        heard: categories that sound, in order of onset.
        noise: standard deviation of the noise.
        kind: "first" or "last", a key of `QUESTIONS`.
        choices: the options, all that sounds among them.
    """

    waveform: np.ndarray
    heard: tuple[str, ...]
    noise: float
    kind: str
    choices: tuple[str, ...]

    @property
    def answer(self) -> str:
        """The right one of `choices`."""
        return self.heard[0 if self.kind == "first" else -1]


def make_sound_clip(config: SoundsConfig, split: str, index: int) -> SoundClip:
    """Draw clip `index` of a split by a random generator of its own."""
    key = (SPLITS.index(split), index)
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=key))
    sounds = draw_sounds(rng, number=int(rng.integers(1, 1 + max(NUMBERS))))
    noise = float(np.exp(rng.uniform(*np.log(NOISE))))
    heard = tuple(sound.category for sound in sounds)
    silent = [category for category in TRAINED_CATEGORIES if category not in heard]
    options = [*heard, *rng.permutation(silent)[: NUM_CHOICES - len(heard)]]
    return SoundClip(
        waveform=render_waveform(sounds, rng, MEDIA, noise=noise),
        heard=heard,
        noise=noise,
        kind=str(rng.choice(["first", "last"])),
        choices=tuple(str(option) for option in rng.permutation(options)),
    )


def draw_sounds(rng: np.random.Generator, *, number: int) -> tuple[SoundEvent, ...]:
    """Draw sounds that begin one after another, a fifth of the clip apart at least, and go on to its end."""
    cast = rng.choice(TRAINED_CATEGORIES, number, replace=False)
    start, onsets = rng.uniform(0, 0.1), rng.uniform(0.2, 0.3, number).cumsum()
    return tuple(
        SoundEvent(str(category), float(start + onset - onsets[0]), 1.0)
        for category, onset in zip(cast, onsets, strict=True)
    )


def write_sounds(out: Path, config: SoundsConfig, *, overwrite: bool = False) -> None:
    """Write all clips, their questions and their gold chains; the folder appears when all is written.

    Args:
        out: folder of the data.
        config: size and seed.
        overwrite: whether to replace data of this kind that are there.

    Raises:
        FileExistsError: if `out` is not empty and `overwrite` is off, or it holds something else.
        OutputInUseError: if another run writes to `out`.
    """
    with whole_folder(out) as folder:
        check_replaceable(out, CHAINS_FILE, overwrite=overwrite)
        (folder / "sounds").mkdir()
        for split in SPLITS:
            clips = [make_sound_clip(config, split, index) for index in range(getattr(config, split))]
            for index, clip in enumerate(clips):
                write_wave(folder / _sound(split, index), clip.waveform, MEDIA.sampling_rate)
            questions = [_question(split, index, clip) for index, clip in enumerate(clips)]
            write_records(folder / f"avqa_{split}.jsonl", questions)
            if split == "sft":
                write_records(folder / CHAINS_FILE, [_chain(split, index, clip) for index, clip in enumerate(clips)])


def _sound(split: str, index: int) -> str:
    return f"sounds/{split}-{index:05d}.wav"


def _question(split: str, index: int, clip: SoundClip) -> dict[str, Any]:
    """Return a line of avqa_<split>.jsonl."""
    return {
        "id": f"{split}-{index:05d}",
        "question_text": QUESTIONS[clip.kind],
        "multi_choice": clip.choices,
        "answer": clip.choices.index(clip.answer),
        "question_type": NUMBERS[len(clip.heard)],
        "audio_path": _sound(split, index),
        "heard": clip.heard,
        "noise": round(clip.noise, 5),
    }


def _chain(split: str, index: int, clip: SoundClip) -> dict[str, Any]:
    """Return a line of chains.jsonl."""
    return {
        "uid": f"{split}-{index:05d}",
        "row": index,
        "split": split,
        "category": clip.answer,
        "exp": QUESTIONS[clip.kind],
        "steps": gold_steps(clip.kind, clip.heard),
        "answer": clip.answer,
        "heard": clip.heard,
    }


def gold_steps(kind: str, heard: Sequence[str]) -> dict[str, str]:
    """Return the text of each step of both chains: they say the same, one in a sentence and one in four parts."""
    answer = heard[0 if kind == "first" else -1]
    return {
        FREE_STEP: heard_step(heard),
        "planning": f"I name what sounds in order and take the {kind}.",
        "caption": heard_step(heard),
        "reasoning": f"The {answer} sounds {kind}.",
        "summary": f"It is the {answer}.",
    }
