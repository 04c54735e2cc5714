"""Questions about a clip of one colour and a sound in windows, for a policy that sees and is given no sound.

Half of the questions ask for the loudness of a window, which a tool tells (`rollout.clip_tools.Ears`), the others for
the colour, which the model sees. Each has three options, as often right as each other. The rows of the split "sft" hold
calls, half of them by lot, whatever they ask: they teach how to call, and nothing about when.

    <root>/manifest.jsonl, <root>/pictures/<split>-<n>.png, <root>/sounds/<levels>.wav      (`benchmark: clips`)
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from aurora_rl.files.atomic import write_whole
from aurora_rl.files.journal import to_lines

SAMPLING_RATE = 16_000
#: Windows of a sound, one second each.
NUM_WINDOWS = 4
#: Amplitude of a window's noise by the name of its level.
LEVELS = {"loud": 0.5, "quiet": 0.03, "silent": 0.0}
COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 210)}
#: Pixels on a side of a picture.
SIZE = 32
QUESTIONS = {
    "loudness": "How loud is it from {start} to {end} s?",
    "colour": "Which colour is seen from {start} to {end} s?",
}


def write_window_questions(root: Path, *, sft: int, train: int, test: int, seed: int = 0) -> None:
    """Write clips, and the questions of the splits "sft", "train" and "test", one a clip.

    Args:
        root: folder that they are written to.
        sft: number of questions with calls to imitate.
        train: number of questions for rollouts.
        test: number of held-out questions.
        seed: seed of pictures, sounds and questions.

    Raises:
        ValueError: if a number is odd or there is nothing to train on.
    """
    if sft % 2 or train % 2 or test % 2 or sft < 2 or train < 2:
        raise ValueError(f"{sft}, {train} and {test} questions: the two kinds need even numbers, 2 at least")
    rng = np.random.default_rng(seed)
    for folder in ("pictures", "sounds"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for levels in _patterns():
        soundfile.write(root / _sound_path(levels), sound(levels, rng), SAMPLING_RATE)
    counts = (("sft", sft), ("train", train), ("test", test))
    records = [_write_question(root, split, number, rng) for split, count in counts for number in range(count)]
    write_whole(root / "manifest.jsonl", to_lines(records))


def sound(levels: tuple[str, ...], rng: np.random.Generator) -> np.ndarray:
    """Make noise with a level for each window, (N,) float32."""
    windows = [LEVELS[level] * rng.uniform(-1, 1, SAMPLING_RATE) for level in levels]
    return np.concatenate(windows).astype(np.float32)


def _patterns() -> list[tuple[str, ...]]:
    """List the levels of all sounds; each level is there, so that the whole lies between loud and quiet."""
    return [levels for levels in itertools.product(LEVELS, repeat=NUM_WINDOWS) if len(set(levels)) == len(LEVELS)]


def _sound_path(levels: tuple[str, ...]) -> str:
    return f"sounds/{'-'.join(levels)}.wav"


def _write_question(root: Path, split: str, number: int, rng: np.random.Generator) -> dict[str, Any]:
    """Write a clip's picture, and return its question as a row of a manifest."""
    kind = tuple(QUESTIONS)[number % len(QUESTIONS)]
    colour, patterns = str(rng.choice(list(COLOURS))), _patterns()
    levels, start = patterns[rng.integers(len(patterns))], int(rng.integers(NUM_WINDOWS))
    picture = f"pictures/{split}-{number:05d}.png"
    shade = np.array(COLOURS[colour]) + rng.integers(-30, 31, 3)
    Image.fromarray(np.full((SIZE, SIZE, 3), shade.clip(0, 255), np.uint8)).save(root / picture)
    options = list(LEVELS) if kind == "loudness" else list(COLOURS)
    call = {"name": "loudness", "arguments": {"start_s": start, "end_s": start + 1}}
    record = {
        "id": f"{split}-{number:05d}",
        "split": split,
        "frames": [picture],
        "audio": _sound_path(levels),
        "reference": QUESTIONS[kind].format(start=start, end=start + 1),
        "reference_type": kind,
        "choices": [str(option) for option in rng.permutation(options)],
        "answer": levels[start] if kind == "loudness" else colour,
    }
    return record | ({"calls": [call] if rng.integers(2) else []} if split == "sft" else {})
