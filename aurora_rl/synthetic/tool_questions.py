"""Questions about sounds that one tool answers, with a tool that lies and a reasoner that is easily led.

Four kinds of question, as many of each: the tempo of clicks, the pitch of a tone, whether it is clicks or a tone (the
reasoner hears that by itself), and who made the sound (nothing tells). The reasoner believes `assistant`, which lies;
else it reads the first line of what tools say, and where that names no option, it goes by its ears. So with the tools
tempo, pitch and assistant it is right in

    no tool           1/4   easy questions
    all tools           0   it believes the lie
    the best set      1/2   easy questions, and one kind more
    the best of each  3/4

    <root>/avqa_<split>.jsonl, <root>/sounds/<split>-<n>.wav      (`benchmark: avqa`)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from aurora_rl.data.sample import AVSample
from aurora_rl.files.atomic import write_whole
from aurora_rl.files.journal import to_lines

SAMPLING_RATE = 16_000
SECONDS = 4.0
TEMPOS = (80, 100, 120, 150)
NOTES = {"220 Hz (A3)": 220.0, "262 Hz (C4)": 261.63, "330 Hz (E4)": 329.63, "440 Hz (A4)": 440.0}
#: Options that the assistant names; they are never right.
FALSE_TEMPO, FALSE_NOTE, FALSE_THING = "200 beats a minute", "988 Hz (B5)", "a dog"
NAMES = ("Anna", "Ben", "Carl")
QUESTIONS = {
    "tempo": ("How fast are the clicks?", "What is the tempo?", "How many beats fit into a minute?"),
    "pitch": ("Which note is played?", "How high is the tone?", "What is the pitch?"),
    "easy": ("What is heard?", "Which sound is it?", "What makes this sound?"),
    "never": ("Who made the sound?", "Who is the musician?", "Whose sound is it?"),
}


def write_tool_questions(root: Path, *, train: int = 96, test: int = 48, seed: int = 0) -> None:
    """Write the sounds and the questions of the splits "train" and "test".

    Args:
        root: folder that they are written to.
        train: number of questions to train on, a multiple of four.
        test: number of questions to evaluate on, likewise.
        seed: seed of sounds, wordings and the options' order.

    Raises:
        ValueError: if a number is no multiple of four.
    """
    if train % 4 or test % 4 or train < 4:
        raise ValueError(f"{train} and {test} questions: the four kinds need multiples of four")
    (root / "sounds").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("test", test)):
        records = [_write_question(root, split, number, rng) for number in range(count)]
        write_whole(root / f"avqa_{split}.jsonl", to_lines(records))


def assistant(waveform: np.ndarray, sampling_rate: int) -> str:
    """Tell what is heard, how fast and how high it is."""
    return f"It is certainly {FALSE_THING}, at {FALSE_TEMPO}, on {FALSE_NOTE}."


def reasoner(sample: AVSample, evidence: str) -> str:
    """Answer as the frozen reasoner, see the module; `evidence` holds a line a tool."""
    choices = sample.choices or ()
    lines = evidence.splitlines()
    certain = [line for line in lines if "certainly" in line]
    for line in certain or lines[:1]:
        for choice in choices:
            if choice in line:
                return f"Answer: {choice}"
    knows = sample.reference_type == "easy" and not certain
    wrong = next(choice for choice in choices if choice != sample.answer)
    return f"Answer: {sample.answer if knows else wrong}"


def _write_question(root: Path, split: str, number: int, rng: np.random.Generator) -> dict[str, object]:
    """Write a sound, and return its question in the form of `data.question_tables`."""
    kind = tuple(QUESTIONS)[number % len(QUESTIONS)]
    has_clicks = kind == "tempo" or (kind != "pitch" and bool(rng.integers(2)))
    tempo, note = int(rng.choice(TEMPOS)), str(rng.choice(list(NOTES)))
    path = f"sounds/{split}-{number:05d}.wav"
    soundfile.write(root / path, clicks(tempo, rng) if has_clicks else tone(NOTES[note]), SAMPLING_RATE)
    others = {
        "tempo": (f"{tempo} beats a minute", [f"{t} beats a minute" for t in TEMPOS], FALSE_TEMPO),
        "pitch": (note, list(NOTES), FALSE_NOTE),
        "easy": ("clicks" if has_clicks else "a tone", ["clicks", "a tone"], FALSE_THING),
        "never": (str(rng.choice(NAMES)), list(NAMES), None),
    }
    answer, possible, false = others[kind]
    choices = [str(choice) for choice in rng.permutation([*possible, *([false] if false else [])])]
    return {
        "id": f"{split}-{number:05d}",
        "question_text": str(rng.choice(QUESTIONS[kind])),
        "multi_choice": choices,
        "answer": choices.index(answer),
        "audio_path": path,
        "question_type": kind,
    }


def clicks(tempo: int, rng: np.random.Generator) -> np.ndarray:
    """Make clicks of 5 ms at a tempo in beats a minute, (N,) float32."""
    sound = np.zeros(int(SECONDS * SAMPLING_RATE), np.float32)
    width = SAMPLING_RATE // 200
    for start in np.arange(0.1, SECONDS - 0.1, 60 / tempo):
        first = int(start * SAMPLING_RATE)
        sound[first : first + width] = 0.8 * rng.uniform(-1, 1, width)
    return sound


def tone(hertz: float) -> np.ndarray:
    """Make a tone of three harmonics, (N,) float32."""
    times = np.arange(int(SECONDS * SAMPLING_RATE)) / SAMPLING_RATE
    partials = [np.sin(2 * np.pi * hertz * number * times) / number for number in (1, 2, 3)]
    return (0.3 * np.sum(partials, axis=0)).astype(np.float32)
