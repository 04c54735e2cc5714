"""SIGTERM in training: a checkpoint at the next step that all ranks reach, then exit code 143.

A scheduler that preempts a job sends SIGTERM, and so does a launcher when one rank has failed. In the second case the
others wait in a collective that never ends, so a rank that reaches no step in time ends by itself. A process without
others takes the time that its step needs.
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

#: What a shell reports of a process that SIGTERM has ended.
EXIT_CODE = 128 + signal.SIGTERM
#: Below the 30 s after which torchrun and Slurm kill what SIGTERM has not ended, so that there is still a message.
STOP_GRACE_S = 25.0
STOP_GRACE_HELP = (
    "Seconds from SIGTERM to the end of a step, after which one of several ranks ends without a checkpoint."
)


class TrainingInterrupted(SystemExit):
    """Raised on every rank when the checkpoint is written; left alone, it ends the process with exit code 143."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class TerminationSignal:
    """SIGTERM as a flag, with a time in which somebody must have looked at it; a context manager.

    Python runs a signal's handler when the main thread is back from C, which it never is from a dead collective. What
    C writes to the wakeup descriptor reaches another thread at once.

    Args:
        grace_s: seconds from the signal to `go_on`, after which the process is ended with exit code 143; None never
            ends it.

    Attributes:
        is_received: whether the signal has come.
    """

    def __init__(self, grace_s: float | None) -> None:
        self.grace_s = grace_s
        self.is_received = False
        self._lock = threading.Lock()
        self._countdown: threading.Timer | None = None
        self._writer: int | None = None
        # A forked child (a worker of a pool, say) shares the descriptor: what ends it must not look like our signal.
        leave_in_child = weakref.WeakMethod(self._restore)
        os.register_at_fork(after_in_child=lambda: (restore := leave_in_child()) and restore())

    def __enter__(self) -> TerminationSignal:
        self.is_received = False
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._previous_descriptor = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._previous_handler = signal.signal(signal.SIGTERM, lambda *_: None) or signal.SIG_DFL
            threading.Thread(target=self._watch, args=(reader,), name="SIGTERM", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.go_on(None)
        self._restore()

    def go_on(self, seconds: float | None) -> None:
        """Ends the countdown: the signal has been seen. Further ones change nothing.

        A launcher and a scheduler may both send one, so a second must not end what the first has begun.

        Args:
            seconds: starts a new countdown of so many; None for none.
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
            "SIGTERM, and no step that all ranks reach within %g s: ending with exit code %d and without a checkpoint. "
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
    """Writes a checkpoint and ends the run where all ranks know that one of them has been asked to.

    Args:
        termination: this rank's signal.
        may_resume_after: whether a checkpoint of a step can be resumed from.
    """

    def __init__(self, termination: TerminationSignal, may_resume_after: Callable[[int], bool]) -> None:
        self.termination = termination
        self.may_resume_after = may_resume_after
        self._is_stopping = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        is_asked = self._is_received_anywhere(args)
        is_last = state.global_step >= state.max_steps
        self._is_stopping = is_asked and not is_last and self.may_resume_after(state.global_step)
        if is_asked:
            self.termination.go_on(None if is_last or self._is_stopping else self.termination.grace_s)
        if self._is_stopping:
            control.should_save = True
            args.save_only_model = False  # a run cannot go on from weights alone

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._is_stopping:
            return
        if state.is_world_process_zero:
            logger.warning(
                "SIGTERM: checkpoint-%d is written to %s, ending with exit code %d. The same command with "
                "--resume_from_checkpoint true goes on from there",
                state.global_step,
                args.output_dir,
                EXIT_CODE,
            )
        # Not `control.should_training_stop`: the trainer would go on to evaluate, to load the best checkpoint and, with
        # a save_total_limit of 1, to delete the one just written.
        raise TrainingInterrupted

    def _is_received_anywhere(self, args: TrainingArguments) -> bool:
        if args.world_size == 1:
            return self.termination.is_received
        flag = torch.tensor(float(self.termination.is_received), device=args.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag)
