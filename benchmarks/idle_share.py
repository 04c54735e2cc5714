"""Share of a GRPO step that is spent waiting for media, read in turn and read ahead during the step before.

    python benchmarks/idle_share.py --output out.json

Clips of noise, ten pictures of 640 x 360 and ten seconds of sound each, are written to a temporary folder, four a
step. The same model is trained on them in both ways in turn, and the time inside `_encode_rows` counts as waiting. A
step of a tiny model on a CPU is shorter than one of 7B on a GPU, and shares the processor's cores with the thread that
reads: the seconds of waiting are meaningful elsewhere, the shares only for this machine and this model.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image
from transformers import PrinterCallback, TrainerCallback

from aurora_rl.assembly.options import OptionParser
from aurora_rl.data.containers import SAMPLING_RATE
from aurora_rl.data.dataset import to_dataset
from aurora_rl.data.sample import AVSample
from aurora_rl.models.encoding import PromptOptions, SampleEncoder
from aurora_rl.models.heads.segmenters import build_frame_encoder
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from benchmarks.timing import Seconds, Stopwatch, now
from benchmarks.workload import Policy, StepShape, build_policy

SHAPE = StepShape(
    num_generations=2, num_frames=10, completion_length=16, hidden_size=64, num_layers=2, num_heads=2, frame_size=64
)
WAYS = ("in turn", "ahead")
#: Prompts of a step, each with a clip of its own.
CLIPS_A_STEP = 4
#: Limits of a frame's area for the vision tower, in pixels: large files are read, but the tiny towers get small frames.
MIN_PIXELS, MAX_PIXELS = 256, 64 * 64


def write_clips(
    folder: Path, num_clips: int, *, num_frames: int, size: tuple[int, int], seconds: float
) -> list[AVSample]:
    """Write clips of smooth noise in JPEG, with masks in PNG and sound in WAV, one row a clip.

    Args:
        folder: folder of the files.
        num_clips: number of clips.
        num_frames: number of pictures of a clip.
        size: width and height of a picture in pixels.
        seconds: length of the sound, in seconds.
    """
    generator = np.random.default_rng(0)
    return [_write_clip(folder / f"clip{row}", row, generator, num_frames, size, seconds) for row in range(num_clips)]


def _write_clip(
    folder: Path, row: int, generator: np.random.Generator, num_frames: int, size: tuple[int, int], seconds: float
) -> AVSample:
    folder.mkdir()
    mask = np.zeros(size[::-1], dtype=np.uint8)
    mask[: size[1] // 2] = 255
    for frame in range(num_frames):
        coarse = generator.integers(0, 256, (9, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size).save(folder / f"{frame}.jpg")
        Image.fromarray(mask).save(folder / f"{frame}.png")
    waveform = generator.uniform(-0.1, 0.1, round(seconds * SAMPLING_RATE))
    soundfile.write(folder / "sound.wav", waveform, SAMPLING_RATE)
    return AVSample(
        uid=folder.name, row=row, split="train", media_id=folder.name, category="drum", reference="the drum", fps=1.0,
        frame_paths=tuple(str(folder / f"{frame}.jpg") for frame in range(num_frames)),
        audio_path=str(folder / "sound.wav"),
        mask_paths=tuple(str(folder / f"{frame}.png") for frame in range(num_frames)),
    )  # fmt: skip


class InTurnGRPOTrainer(AuroraGRPOTrainer):
    """A trainer that does not know its next batch, so that every batch is read in its turn."""

    def _next_generation_batch(self, further: int = 0) -> list[dict[str, Any]]:
        return []


class _StepTimes(TrainerCallback):
    """Records the seconds of each step, and the seconds in it that were spent waiting for media.

    Args:
        stopwatch: stopwatch with a part `media`.
    """

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch = stopwatch
        self.waited: list[float] = []
        self.whole: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._start, self._media = now().wall, self._media_so_far()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.whole.append(now().wall - self._start)
        self.waited.append(self._media_so_far() - self._media)

    def _media_so_far(self) -> float:
        return self.stopwatch.parts.get("media", Seconds()).wall


def train(policy: Policy, samples: list[AVSample], shape: StepShape, *, way: str) -> tuple[list[float], list[float]]:
    """Train once on each clip; return seconds waited and seconds in all of each step except the first."""
    frame_encoder = build_frame_encoder(policy.model.config.segmenter)
    encode = SampleEncoder(
        Qwen2_5OmniFamily(),
        policy.processor,
        lambda sample, clip: frame_encoder.encode(clip.frames),
        options=PromptOptions(instruction="{reference}", min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS),
    )
    stopwatch = Stopwatch()
    times = _StepTimes(stopwatch)
    with tempfile.TemporaryDirectory() as output:
        trainer = (AuroraGRPOTrainer if way == "ahead" else InTurnGRPOTrainer)(
            model=policy.copy(),
            reward_funcs=["reward_fns.format:format_reward"],
            args=AuroraGRPOConfig(
                output_dir=output,
                max_steps=len(samples) // CLIPS_A_STEP,
                per_device_train_batch_size=shape.num_generations * CLIPS_A_STEP,
                num_generations=shape.num_generations,
                max_completion_length=shape.completion_length,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            encode=encode,
            train_dataset=to_dataset(samples, encode.text_prompt),
            processing_class=policy.processor,
            callbacks=[times],
        )
        trainer.remove_callback(PrinterCallback)
        stopwatch.watch(trainer, "_encode_rows", "media")
        with stopwatch.run():
            trainer.train()
    return times.waited[1:], times.whole[1:]


def measure(shape: StepShape, *, size: tuple[int, int], seconds: float, steps: int, rounds: int) -> dict[str, Any]:
    """Return the median seconds waited in a step, the median step, and the share of waiting in all steps."""
    policy = build_policy(shape)
    waited: dict[str, list[float]] = {way: [] for way in WAYS}
    whole: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        samples = write_clips(
            Path(folder), steps * CLIPS_A_STEP, num_frames=shape.num_frames, size=size, seconds=seconds
        )
        for _ in range(rounds):
            for way in WAYS:
                waits, steps_taken = train(policy, samples, shape, way=way)
                waited[way] += waits
                whole[way] += steps_taken
    return {
        way: {
            "waited_s": statistics.median(waited[way]),
            "step_s": statistics.median(whole[way]),
            "share": sum(waited[way]) / sum(whole[way]),
        }
        for way in WAYS
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table, and write the numbers as JSON."""
    parser = OptionParser(description=__doc__)
    parser.add_argument(
        "--steps", type=int, default=6, help="number of optimiser steps of each run; the first is not counted"
    )
    parser.add_argument("--rounds", type=int, default=2, help="number of runs in each way")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(640, 360),
        metavar=("WIDTH", "HEIGHT"),
        help="size of a picture, in pixels",
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip's sound, in seconds")
    parser.add_argument(
        "--completion_length", type=int, default=SHAPE.completion_length, help="number of tokens of a completion"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    args = parser.parse_args(argv)
    numbers = measure(
        dataclasses.replace(SHAPE, completion_length=args.completion_length),
        size=tuple(args.size),
        seconds=args.seconds,
        steps=args.steps,
        rounds=args.rounds,
    )
    print("| media are read | waited in a step, s | a step, s | share |\n| --- | --- | --- | --- |")
    for way, row in numbers.items():
        print(f"| {way} | {row['waited_s']:.3f} | {row['step_s']:.2f} | {100 * row['share']:.1f}% |")
    if args.output:
        args.output.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
