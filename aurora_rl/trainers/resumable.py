"""Resuming, for SFT and GRPO: every checkpoint is complete, and SIGTERM ends a run with a checkpoint.

The same command with `--resume_from_checkpoint true`, given again, ends with the model of an unbroken run.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from aurora_rl.files.atomic import replace_folder, write_whole
from aurora_rl.files.output_lock import OutputInUseError, hold_output
from aurora_rl.files.plain import parse_json, read_text_file
from aurora_rl.models.checkpoint_files import (
    CheckpointError,
    check_adapter_is_whole,
    check_checkpoint_files,
    named_weights,
)
from aurora_rl.trainers.interruption import InterruptionCallback, TerminationSignal
from aurora_rl.trainers.progress import show_measures
from aurora_rl.trainers.safe_loading import deepspeed_loads_weights_alone, refuse_pickled_index

logger = logging.getLogger(__name__)

#: Folder in `output_dir` that holds a checkpoint while it is written.
INCOMPLETE = "incomplete"
#: Folder in `INCOMPLETE` that holds an older checkpoint while a new one of the same name replaces it.
REPLACED = "replaced"
UNUSABLE = 2  # exit code


@contextmanager
def alone_in_output(args: TrainingArguments) -> Iterator[None]:
    """Keep other runs out of `output_dir`; a second run exits with code 2 and a message."""
    try:
        with hold_output(args.output_dir, is_folder=True, is_main_process=args.process_index == 0):
            yield
    except OutputInUseError as error:
        print(f"error: {error} (output_dir)", file=sys.stderr)
        raise SystemExit(UNUSABLE) from None


class ResumableTrainer(Trainer):
    """Mixin of a trainer class, placed before it.

    transformers writes `checkpoint-N` in place, resumes from the largest N, complete or not, and deletes older ones
    when its main process is done, even if other ranks are still writing. Here a checkpoint gets its name by one
    renaming, when every rank has written its part, and older checkpoints are deleted after that.
    """

    _is_writing = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A single process does not wait for others, so its step always ends and needs no limit.
        self._termination = TerminationSignal(self.args.stop_grace_s if self.args.world_size > 1 else None)
        self.add_callback(InterruptionCallback(self._termination, self._may_resume_after))
        show_measures(self)

    def run_to_its_end(self) -> None:
        """Train from the checkpoint of `resume_from_checkpoint` and save the final model; do nothing if that is done.

        The state file beside the final model marks a run as finished. It is removed when training begins and written
        last, so that a run that is killed in between counts as unfinished.

        Raises:
            TrainingInterrupted: after SIGTERM, when the checkpoint is written.
        """
        resume = self.args.resume_from_checkpoint
        state_file = Path(self.args.output_dir, TRAINER_STATE_NAME)
        *_, max_steps = self.set_initial_training_values(self.args, self.get_train_dataloader())
        if _means_the_last(resume) and self._decided(lambda: _has_ended(Path(self.args.output_dir), max_steps)):
            logger.info("%s: the run has ended and its model is saved: there is nothing to do", self.args.output_dir)
            return
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            state_file.unlink(missing_ok=True)
        self.train(resume_from_checkpoint=resume)
        self.save_model(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            # the format of `TrainerState.save_to_json`, which does not write atomically
            text = json.dumps(dataclasses.asdict(self.state), indent=2, sort_keys=True) + "\n"
            write_whole(state_file, text)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as transformers does; if there is no checkpoint, True or "true" starts from the beginning.

        Raises:
            TrainingInterrupted: after SIGTERM, when the checkpoint is written.
            CheckpointError: if the checkpoint lacks weights.
            NotPlainFileError: if a file of the checkpoint is a pipe or a device.
            UnsafeCheckpointError: if a file of the checkpoint could run code when it is opened.
        """
        if _means_the_last(resume_from_checkpoint):
            resume_from_checkpoint = self._decided(self._find_checkpoint)
        if isinstance(resume_from_checkpoint, str):
            check_checkpoint_files(resume_from_checkpoint)
            refuse_pickled_index(Path(resume_from_checkpoint))
        with deepspeed_loads_weights_alone(), self._termination:
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def _decided(self, decide: Callable[[], Any]) -> Any:
        """Return what the main process decides; others must not look into `output_dir`, where it may change files."""
        decision = [decide() if self.is_world_process_zero() else None]
        return broadcast_object_list(decision)[0]

    def _find_checkpoint(self) -> str | None:
        """Return the last checkpoint that a run can resume from; None, with a message, if there is none."""
        output_dir = Path(self.args.output_dir)
        _finish_replacing(output_dir)
        checkpoints = list_checkpoints(output_dir)
        resumable = [checkpoint for checkpoint in checkpoints if holds_optimiser(checkpoint)]
        if not resumable:
            what = f"{len(checkpoints)} checkpoint(s) of weights alone (save_only_model)" if checkpoints else "none"
            logger.warning("no checkpoint to resume from in %s (%s): starting from the beginning", output_dir, what)
            return None
        logger.info("resuming from %s", resumable[-1])
        return str(resumable[-1])

    def _run_epoch(self, **kwargs: Any) -> None:
        # transformers looks at the number of steps after a step, never before the first.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(**kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        # With a save_total_limit of 1 transformers deletes the last checkpoint here when an earlier one is the best: a
        # run killed before its final model is written would have to resume from that earlier one.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with named_weights(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        loaded = self.accelerator.unwrap_model(self.model if model is None else model)
        weights = Path(resume_from_checkpoint, SAFETENSORS_WEIGHTS_NAME)
        if isinstance(loaded, PeftModel) and weights.is_file():
            check_adapter_is_whole(resume_from_checkpoint, weights, loaded)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint that lacks weights; transformers would only warn, and keep the weights of the start."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        missing = sorted(name for name in load_result.missing_keys if name not in tied)
        if missing:
            raise CheckpointError(f"the checkpoint lacks the weight {missing[0]}: resume from an earlier one")
        super()._issue_warnings_after_load(load_result)

    def _may_resume_after(self, step: int) -> bool:
        """Return whether a run that resumes after this step ends with the model of an unbroken run."""
        return True

    def _get_output_dir(self, trial: Any) -> str:
        output_dir = super()._get_output_dir(trial)
        return str(Path(output_dir, INCOMPLETE)) if self._is_writing else output_dir

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        output_dir = Path(self._get_output_dir(trial))
        incomplete = output_dir / INCOMPLETE
        if self.args.should_save and incomplete.exists():
            logger.warning("%s is removed: the run that wrote it was killed meanwhile", incomplete)
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
        """Write the final path of the best checkpoint into the state."""
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
        # With save_strategy "best" this value replaces `should_save`, which SIGTERM may have set.
        return super()._determine_best_metric(metrics, trial) or self.control.should_save


def _put_in_place(written: Path, checkpoint: Path) -> None:
    """Give a complete checkpoint its name; one of that name, from an earlier run, is moved away first."""
    replace_folder(checkpoint, written, former=written.parent / REPLACED)
    shutil.rmtree(written.parent)


def _has_ended(output_dir: Path, max_steps: int) -> bool:
    """Return whether a folder holds the final model of a run of `max_steps` steps."""
    try:
        state = parse_json(read_text_file(output_dir / TRAINER_STATE_NAME))
        return state["global_step"] >= state["max_steps"] == max_steps and any(output_dir.glob("*.safetensors"))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def _finish_replacing(output_dir: Path) -> None:
    """Finish a renaming of `_put_in_place` that a kill has interrupted; the new checkpoint is complete then."""
    incomplete = output_dir / INCOMPLETE
    if not (incomplete / REPLACED).exists():
        return
    for written in incomplete.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if not (output_dir / written.name).exists():
            written.rename(output_dir / written.name)


def list_checkpoints(output_dir: Path) -> list[Path]:
    """List the folders `checkpoint-N`, the largest N last."""
    found = [path for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()]
    numbered = [path for path in found if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", path.name)]
    return sorted(numbered, key=lambda path: int(path.name.rpartition("-")[2]))


def holds_optimiser(checkpoint: Path) -> bool:
    """Return whether a checkpoint holds the states of optimiser and trainer, without which no run resumes."""
    has_optimiser = any(checkpoint.glob("optimizer*")) or any(checkpoint.glob("global_step*"))  # the latter: DeepSpeed
    return has_optimiser and (checkpoint / TRAINER_STATE_NAME).is_file()


def _means_the_last(resume_from_checkpoint: str | bool | None) -> bool:
    return str(resume_from_checkpoint).lower() == "true"
