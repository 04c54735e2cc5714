"""Checkpoints are whole or not there, whatever else the trainer does with them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTTrainer

from aurora_rl.trainers.interruption import TrainingInterrupted
from aurora_rl.trainers.sft import AuroraSFTTrainer
from tests.trainers.test_resume import Terminate

EVERY_STEP = {"save_strategy": "steps", "save_steps": 1}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).glob("checkpoint-*"))


@pytest.mark.parametrize("is_protected", [True, False])
def test_a_write_that_is_cut_off_leaves_the_checkpoint_before(
    is_protected: bool, make_sft: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
):
    """transformers' own way, the control, leaves a half-written one in the place of the last."""

    def cut_off(self: Trainer, output_dir: str) -> None:
        if self.state.global_step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(AuroraSFTTrainer, "_save_rng_state", cut_off)
    if not is_protected:
        monkeypatch.setattr(AuroraSFTTrainer, "_save_checkpoint", SFTTrainer._save_checkpoint)
    trainer = make_sft(**EVERY_STEP, save_total_limit=1)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    last = Path(get_last_checkpoint(trainer.args.output_dir))
    assert last.name == ("checkpoint-1" if is_protected else "checkpoint-2")
    assert (last / "trainer_state.json").exists() == is_protected
    incomplete = Path(trainer.args.output_dir, "incomplete/checkpoint-2")
    assert (incomplete / "model.safetensors").exists() == is_protected


def test_older_checkpoints_go_when_the_new_one_is_whole(make_sft: Callable[..., Trainer]):
    trainer = make_sft(**EVERY_STEP, max_steps=3, save_total_limit=2)
    trainer.train()
    assert names(trainer.args.output_dir) == ["checkpoint-2", "checkpoint-3"]
    assert not Path(trainer.args.output_dir, "incomplete").exists()


def test_a_checkpoint_of_an_earlier_run_is_replaced_as_a_whole(make_sft: Callable[..., Trainer]):
    trainer = make_sft(**EVERY_STEP, max_steps=1)
    trainer.train()
    checkpoint = Path(trainer.args.output_dir, "checkpoint-1")
    (checkpoint / "rng_state_7.pth").touch()
    make_sft(**EVERY_STEP, max_steps=1).train()
    assert not (checkpoint / "rng_state_7.pth").exists()
    assert (checkpoint / "trainer_state.json").exists()
    assert not Path(trainer.args.output_dir, "incomplete").exists()


def test_the_best_checkpoint_is_named_by_where_it_lies(make_sft: Callable[..., Trainer]):
    trainer = make_sft(**EVERY_STEP, **EVALUATED, load_best_model_at_end=True)
    trainer.train()
    best = Path(trainer.args.output_dir, f"checkpoint-{trainer.state.best_global_step}")
    state = json.loads((best / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == trainer.state.best_model_checkpoint == str(best)
    assert best.is_dir()


def test_the_checkpoint_after_sigterm_is_kept_beside_the_best(make_sft: Callable[..., Trainer]):
    """Where only better ones are written: losses fall, so the first is the best of the largest."""
    trainer = make_sft(save_strategy="best", **EVALUATED, greater_is_better=True, max_steps=9, save_total_limit=1)
    trainer.add_callback(Terminate(trainer, 3))
    with pytest.raises(TrainingInterrupted):
        trainer.train()
    assert trainer.state.best_global_step == 1
    assert names(trainer.args.output_dir) == ["checkpoint-1", "checkpoint-3"]


def test_what_is_pushed_to_the_hub_is_whole(make_sft: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch):
    pushed = []
    monkeypatch.setattr(
        Trainer, "_push_from_checkpoint", lambda self, folder: pushed.append((folder, Path(folder).is_dir()))
    )
    trainer = make_sft(**EVERY_STEP, max_steps=1)
    trainer.args.push_to_hub = True
    trainer.train()
    assert pushed == [(str(Path(trainer.args.output_dir, "checkpoint-1")), True)]
