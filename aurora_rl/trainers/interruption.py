"""SIGTERM in training: a checkpoint at the next step that all ranks reach, then exit code 143.

A scheduler that preempts a job sends SIGTERM, and so does a launcher when one rank has failed. In the second case the
other ranks wait in a collective that never ends, so a rank that does not end its step in time exits. A single process
has no such limit.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

#: The exit code that a shell reports when SIGTERM has ended a process.
EXIT_CODE = 128 + signal.SIGTERM
#: torchrun and Slurm kill a process 30 s after SIGTERM; the limit is lower, so that the message is still written.
STOP_GRACE_S = 25.0
STOP_GRACE_HELP = (
    "Seconds from SIGTERM to the end of a step, after which one of several ranks ends without a checkpoint."
)


class TrainingInterrupted(SystemExit):
    """Raised on every rank when the checkpoint is written; if nobody catches it, the exit code is 143."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class TerminationSignal:
    """Context manager that turns SIGTERM into a flag, and ends the process if nobody acknowledges it in time.

    Python runs a signal's handler when the main thread returns from C code, and it never returns from a dead
    collective. But C also writes the signal's number to the wakeup descriptor, where another thread reads it at once.

    Args:
        grace_s: seconds from the signal to `acknowledge`, after which the process exits with code 143; None for no
            limit.

    Attributes:
        is_received: True once the signal has come.
    """

    def __init__(self, grace_s: float | None) -> None:
        self.grace_s = grace_s
        self.is_received = False
        self._lock = threading.Lock()
        self._countdown: threading.Timer | None = None
        self._writer: int | None = None
        # A forked child (for example a pool's worker) shares the descriptor: a SIGTERM to it must not reach the parent.
        restore_in_child = weakref.WeakMethod(self._restore)
        os.register_at_fork(after_in_child=lambda: (restore := restore_in_child()) and restore())

    def __enter__(self) -> TerminationSignal:
        self.is_received = False
        if threading.current_thread() is threading.main_thread():  # Python allows no other thread to set handlers
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._previous_descriptor = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._previous_handler = signal.signal(signal.SIGTERM, lambda *_: None) or signal.SIG_DFL
            threading.Thread(target=self._watch, args=(reader,), name="SIGTERM", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.acknowledge(None)
        self._restore()

    def acknowledge(self, seconds: float | None) -> None:
        """Stop the countdown, as the signal has been seen; later signals change nothing.

        A launcher and a scheduler may both send SIGTERM, so the second must not interrupt the shutdown that the first
        has started.

        Args:
            seconds: length of a new countdown; None for none.
        """
        with self._lock:
            self.is_received = True
            if self._countdown is not None:
                self._countdown.cancel()
            self._start_countdown(seconds)

    def _watch(self, reader: int) -> None:
        while numbers := os.read(reader, 64):
            if signal.SIGTERM in numbers:
                self._receive()
        os.close(reader)

    def _receive(self) -> None:
        with self._lock:
            if not self.is_received:
                self.is_received = True
                self._start_countdown(self.grace_s)

    def _start_countdown(self, seconds: float | None) -> None:
        self._countdown = None if seconds is None else threading.Timer(seconds, self._give_up, args=(seconds,))
        if self._countdown is not None:
            self._countdown.daemon = True
            self._countdown.start()

    def _give_up(self, seconds: float) -> None:
        logger.error(
            "SIGTERM: no step ended on all ranks within %g s, ending with exit code %d and without a checkpoint. "
            "Another rank has failed, or a step takes longer: see stop_grace_s",
            seconds,
            EXIT_CODE,
        )
        os._exit(EXIT_CODE)

    def _restore(self) -> None:
        if self._writer is None:
            return
        signal.signal(signal.SIGTERM, self._previous_handler)
        signal.set_wakeup_fd(self._previous_descriptor)
        os.close(self._writer)
        self._writer = None


class InterruptionCallback(TrainerCallback):
    """Writes a checkpoint and ends the run at the first step where all ranks know that one of them got SIGTERM.

    Args:
        termination: this rank's signal.
        may_resume_after: function that says whether a run can resume from the checkpoint of a step.
    """

    def __init__(self, termination: TerminationSignal, may_resume_after: Callable[[int], bool]) -> None:
        self.termination = termination
        self.may_resume_after = may_resume_after
        self._is_stopping = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        is_received = self._is_received_anywhere(args)
        is_last = state.global_step >= state.max_steps
        self._is_stopping = is_received and not is_last and self.may_resume_after(state.global_step)
        if is_received:
            self.termination.acknowledge(None if is_last or self._is_stopping else self.termination.grace_s)
        if self._is_stopping:
            control.should_save = True
            args.save_only_model = False  # a run cannot resume from weights alone

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._is_stopping:
            return
        if state.is_world_process_zero:
            logger.warning(
                "SIGTERM: checkpoint-%d is written to %s, ending with exit code %d. The same command with "
                "--resume_from_checkpoint true resumes from it",
                state.global_step,
                args.output_dir,
                EXIT_CODE,
            )
        # Not `control.should_training_stop`: the trainer would then evaluate, load the best checkpoint and, with a
        # save_total_limit of 1, delete the one just written.
        raise TrainingInterrupted

    def _is_received_anywhere(self, args: TrainingArguments) -> bool:
        if args.world_size == 1:
            return self.termination.is_received
        flag = torch.tensor(float(self.termination.is_received), device=args.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag)
