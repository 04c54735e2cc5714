"""Measurements of `gpu_step` beside the parts of a step: media, towers, weight sync, peaks of two moments, a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from benchmarks.memory import high_water_mark, reserved_mark, reset_high_water_mark
from benchmarks.timing import Stopwatch

#: The towers' passes inside the forward pass of training.
TRAINED_TOWERS = "towers in forward"
#: Parts of a step that are watched here; `towers` holds the passes of sampling and scoring.
WATCHED_PARTS = ("media encoding", "towers", TRAINED_TOWERS, "weight sync")
#: Starts of the names of CPU calls that launch a kernel.
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel")


def watch_media_and_towers(trainer: AuroraGRPOTrainer, stopwatch: Stopwatch) -> None:
    """Count reading and encoding of rows, the towers' forward passes and vLLM's new weights as parts of a step."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    stopwatch.watch(trainer, "_encode_rows", "media encoding")
    for tower in (base.visual, base.audio_tower):
        stopwatch.watch(tower, "forward", lambda: TRAINED_TOWERS if stopwatch.running == "forward" else "towers")
    if trainer.use_vllm:
        stopwatch.watch(trainer.vllm_generation, "sync_weights", "weight sync")


class MomentPeaks:
    """Measures the peak memory of sampling, and of training after the rollouts have been scored.

    Attributes:
        peaks: allocated bytes (on a CPU the resident set) and reserved bytes (None on a CPU) of each moment.
    """

    def __init__(self, trainer: Any) -> None:
        self.peaks: dict[str, tuple[float, float | None]] = {}
        trainer._generate_single_turn = self._measured(trainer._generate_single_turn)
        trainer._generate_and_score_completions = self._followed(trainer._generate_and_score_completions)

    def _measured(self, sample: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any, **kwargs: Any) -> Any:
            reset_high_water_mark()
            sampled = sample(*args, **kwargs)
            self._keep("sampling")
            return sampled

        return measured

    def _followed(self, score: Callable[..., Any]) -> Callable[..., Any]:
        def followed(*args: Any, **kwargs: Any) -> Any:
            scored = score(*args, **kwargs)
            reset_high_water_mark()
            return scored

        return followed

    def end_step(self) -> None:
        """Record the peak of training, which ends with the step."""
        self._keep("training")

    def _keep(self, moment: str) -> None:
        allocated, reserved = self.peaks.get(moment, (0.0, None))
        now_reserved = reserved_mark()
        if now_reserved is not None:
            reserved = max(reserved or 0.0, now_reserved)
        self.peaks[moment] = (max(allocated, high_water_mark()), reserved)

    def rows(self) -> dict[str, float]:
        """Return rows of the table, in GB."""
        rows: dict[str, float] = {}
        for moment, (allocated, reserved) in self.peaks.items():
            rows[f"peak while {moment}, allocated, GB"] = allocated / 1e9
            if reserved is not None:
                rows[f"peak while {moment}, reserved, GB"] = reserved / 1e9
        return rows


def trace_step(step: Callable[[], Any], path: Path) -> dict[str, float]:
    """Profile one step, write the trace for chrome://tracing, and return how busy the GPU was, if there is one.

    The stopwatch synchronises with the GPU at each border of a part, which adds a few dozen synchronisations to a step.
    """
    is_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    with profile(activities=activities) as profiler:
        step()
    profiler.export_chrome_trace(str(path))
    return summarise_events(profiler.events()) if is_gpu else {}


def summarise_events(events: Iterable[Any]) -> dict[str, float]:
    """Return the share of the time in which no kernel ran, and how often the CPU launched one or waited."""
    events = list(events)
    spans = [(event.time_range.start, event.time_range.end) for event in events]
    kernels = [span for event, span in zip(events, spans, strict=True) if event.device_type.name == "CUDA"]
    whole = max(end for _, end in spans) - min(start for start, _ in spans)
    names = [event.name for event in events]
    return {
        "traced: idle share of the GPU": 1 - _covered(kernels) / whole,
        "traced: kernel launches": float(sum(name.startswith(LAUNCHES) for name in names)),
        "traced: synchronisations": float(sum("Synchronize" in name for name in names)),
    }


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of spans, which overlap if streams run at the same time."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered
