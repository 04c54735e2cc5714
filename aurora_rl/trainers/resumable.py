"""What SFT and GRPO share so that a run may end at any moment: checkpoints that are whole or not there, and SIGTERM."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from aurora_rl.trainers.interruption import InterruptionCallback, TerminationSignal

logger = logging.getLogger(__name__)

#: Folder in `output_dir` where a checkpoint lies while it is written.
INCOMPLETE = "incomplete"


class ResumableTrainer(Trainer):
    """Mixin, put in front of a trainer class.

    transformers writes `checkpoint-N` in place, resumes from the largest N, complete or not, and deletes older ones
    when its main process is done, whatever the others are still writing. Here a checkpoint gets its name by one
    renaming, when every rank has written its part, and older ones go after that.
    """

    _is_writing = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A process alone waits for no other, so that its step will end, however long it takes.
        self._termination = TerminationSignal(self.args.stop_grace_s if self.args.world_size > 1 else None)
        self.add_callback(InterruptionCallback(self._termination, self._may_resume_after))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers'.

        Raises:
            TrainingInterrupted: after SIGTERM, when the checkpoint is written.
        """
        with self._termination:
            return super().train(*args, **kwargs)

    def _may_resume_after(self, step: int) -> bool:
        """Whether a run resumed after this many optimiser steps goes on as if it had not ended."""
        return True

    def _get_output_dir(self, trial: Any) -> str:
        output_dir = super()._get_output_dir(trial)
        return str(Path(output_dir, INCOMPLETE)) if self._is_writing else output_dir

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        output_dir = Path(self._get_output_dir(trial))
        incomplete = output_dir / INCOMPLETE
        if self.args.should_save and incomplete.exists():
            logger.warning("%s is removed: the run that wrote it was ended while it did", incomplete)
            shutil.rmtree(incomplete)
        self.accelerator.wait_for_everyone()
        self._is_writing = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_writing = False
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._record_best(output_dir, incomplete / name)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            _put_in_place(incomplete / name, output_dir / name)
            rotate_checkpoints(
                str(output_dir), self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True
            )
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(output_dir / name))

    def _record_best(self, output_dir: Path, checkpoint: Path) -> None:
        """Let the state name the best checkpoint by where it will lie."""
        best = self.state.best_global_step
        folder = output_dir / f"{PREFIX_CHECKPOINT_DIR}-{best}"
        if best and (best == self.state.global_step or folder.is_dir()):
            self.state.best_model_checkpoint = str(folder)
            if self.args.should_save:
                self.state.save_to_json(str(checkpoint / TRAINER_STATE_NAME))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._is_writing:
            super()._push_from_checkpoint(checkpoint_folder)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # With save_strategy "best" the answer replaces `should_save`, losing the checkpoint that SIGTERM asked for.
        return super()._determine_best_metric(metrics, trial) or self.control.should_save


def _put_in_place(written: Path, checkpoint: Path) -> None:
    """Give a whole checkpoint its name; one of that name, from an earlier run, steps aside first."""
    if checkpoint.exists():
        checkpoint.rename(written.parent / "replaced")
    written.rename(checkpoint)
    shutil.rmtree(written.parent)
