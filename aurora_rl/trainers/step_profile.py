"""Where the time of a step goes: a table of its parts and a trace of its operations, for `profile_steps` steps.

Parts are timed at TRL's own seams, which are wrapped while steps are profiled and not otherwise. What waits for another
process, such as the weights' way to vLLM, is timed in every step and logged.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOTrainer
from trl.extras.profiling import profiling_context

from aurora_rl.files.atomic import write_whole

logger = logging.getLogger(__name__)

#: Parts of a step, in its order; `rest` is what lies between them, reading media and making batches above all.
PARTS = ("generation", "weight sync", "scoring", "rewards", "forward", "backward", "optimizer", "rest")
#: Steps of a run before those that are profiled: the first one allocates, and compiles where something is compiled.
WARM_UP = 1


class TimedTrainer(GRPOTrainer):
    """TRL's GRPOTrainer, with logged seconds of what waits for another process."""

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    @contextlib.contextmanager
    def timed_part(self, name: str) -> Iterator[None]:
        """Time a part of the step as TRL does, for its trackers, and log its `seconds/<name>`."""
        start = time.perf_counter()
        with profiling_context(self, name):
            yield
        self._metrics[self._mode][f"seconds/{name}"].append(time.perf_counter() - start)


class PartClock:
    """Splits time into parts; a part that starts inside another interrupts it, so that nothing counts twice.

    Attributes:
        seconds: wall-clock seconds of each part so far.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._running = ["rest"]
        self._since = _now()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count a span as `name`, in the trace, too."""
        self._charge()
        self._running.append(name)
        try:
            with record_function(name):
                yield
        finally:
            self._charge()
            self._running.pop()

    def _charge(self) -> None:
        now = _now()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def read(self) -> dict[str, float]:
        """Return the seconds of all `PARTS` up to now."""
        self._charge()
        return dict(self.seconds)


def _now() -> float:
    """Read the wall clock, after the GPU (if there is one) has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class StepProfile(TrainerCallback):
    """Profiles the first steps after the warm-up of a run, on the main process.

    Args:
        trainer: the trainer, whose seams are wrapped meanwhile.
        num_steps: number of optimiser steps.
        folder: folder of `parts.md` and `trace.json.gz`, which chrome://tracing and Perfetto open.
    """

    def __init__(self, trainer: GRPOTrainer, num_steps: int, folder: Path) -> None:
        self.trainer, self.num_steps, self.folder = trainer, num_steps, folder
        self._first_step = 0
        self._steps = 0
        self._open: contextlib.ExitStack | None = None
        self._optimizer = contextlib.ExitStack()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count from the step that the run starts with, which may be resumed."""
        self._first_step = state.global_step + WARM_UP

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin after the warm-up."""
        if state.is_world_process_zero and state.global_step == self._first_step:
            activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]
            self._open = contextlib.ExitStack()
            self._trace = self._open.enter_context(profile(activities=activities))
            self._clock = PartClock()
            for owner, method, part in _seams(self.trainer):
                self._open.enter_context(_timed(owner, method, part, self._clock))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Begin the optimiser's part."""
        if self._open is not None:
            self._optimizer.enter_context(self._clock.part("optimizer"))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """End the optimiser's part."""
        self._optimizer.close()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write after the last of the steps."""
        self._steps += self._open is not None
        if self._steps == self.num_steps:
            self._write()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what there is, if the run is shorter."""
        self._write()

    def _write(self) -> None:
        if self._open is None or not self._steps:
            return
        table = parts_table(self._clock.read(), self._steps)
        self._open.close()
        self._open = None
        write_whole(self.folder / "parts.md", table)
        self._trace.export_chrome_trace(str(self.folder / "trace.json.gz"))
        logger.info("seconds of a step by part, of %d steps; their trace is in %s\n%s", self._steps, self.folder, table)


def profile_steps(trainer: GRPOTrainer) -> None:
    """Let a trainer profile steps, if its configuration asks for it."""
    if trainer.args.profile_steps:
        folder = Path(trainer.args.output_dir) / "profile"
        trainer.add_callback(StepProfile(trainer, trainer.args.profile_steps, folder))


def parts_table(seconds: Mapping[str, float], num_steps: int) -> str:
    """Return a table in Markdown: seconds of a step by part, and its share."""
    whole = sum(seconds.values())
    rows = [f"| {part} | {spent / num_steps:.3f} | {spent / whole:.0%} |" for part, spent in seconds.items()]
    head = ["| part | seconds a step | share |", "| --- | --- | --- |"]
    return "\n".join([*head, *rows, f"| **whole step** | {whole / num_steps:.3f} | 100% |"]) + "\n"


def _seams(trainer: GRPOTrainer) -> Iterator[tuple[Any, str, str]]:
    """Yield what is timed: an object, the name of its method, the part."""
    yield trainer, "_generate_single_turn", "generation"
    yield trainer, "_get_per_token_logps_and_entropies", "scoring"
    yield trainer, "_calculate_rewards", "rewards"
    yield trainer, "_compute_loss", "forward"
    yield trainer.accelerator, "backward", "backward"
    if trainer.use_vllm:
        yield trainer.vllm_generation, "sync_weights", "weight sync"


@contextlib.contextmanager
def _timed(owner: Any, method: str, part: str, clock: PartClock) -> Iterator[None]:
    """Count the calls of an object's method as a part of the step, while the block runs."""
    stock: Callable[..., Any] = getattr(owner, method)
    before = vars(owner).get(method)

    @functools.wraps(stock)
    def timed(*args: Any, **kwargs: Any) -> Any:
        # TRL scores rollouts and computes the loss by one method.
        is_loss = part == "scoring" and torch.is_grad_enabled()
        with clock.part("forward" if is_loss else part):
            return stock(*args, **kwargs)

    setattr(owner, method, timed)
    try:
        yield
    finally:
        delattr(owner, method)
        if before is not None:
            setattr(owner, method, before)
