"""The bar of a training, with the latest reward and IoU behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import ProgressCallback, Trainer, TrainerControl, TrainerState, TrainingArguments

#: Logged metrics that the bar shows, and their names there. SFT has no reward, and its IoU is that of the true chain.
SHOWN = {"reward": "reward", "iou": "IoU", "teacher_forced_iou": "IoU"}
SHOWN |= {f"eval_{metric}": f"eval {name}" for metric, name in SHOWN.items()}


class MeasuredProgress(ProgressCallback):
    """transformers' bar, which also shows the last logged values of `SHOWN`."""

    def __init__(self, max_str_len: int = 100) -> None:
        super().__init__(max_str_len)
        self._values: dict[str, str] = {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().on_log(args, state, control, logs=dict(logs or {}), **kwargs)
        if self.training_bar is not None:  # the main process's alone
            self._values |= measures(logs or {})
            self.training_bar.set_postfix(self._values)


def measures(logs: Mapping[str, Any]) -> dict[str, str]:
    """Return what the bar shows of a line of logs, by the names there."""
    return {name: f"{logs[metric]:.3f}" for metric, name in SHOWN.items() if isinstance(logs.get(metric), float | int)}


def show_measures(trainer: Trainer) -> None:
    """Put `MeasuredProgress` in the place of transformers' bar; a run without a bar, and a notebook's table, stay."""
    if any(type(callback) is ProgressCallback for callback in trainer.callback_handler.callbacks):
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(MeasuredProgress())
