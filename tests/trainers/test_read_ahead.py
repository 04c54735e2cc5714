"""Media of the next generation batch are read while the step trains: the same rows in the same order."""

import dataclasses
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from aurora_rl.data.containers import MediaError
from aurora_rl.data.sample import AVSample
from aurora_rl.models.encoding import SampleEncoder
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.interruption import TrainingInterrupted
from aurora_rl.trainers.upcoming import UpcomingBatches
from tests.trainers.conftest import mixed

MakeGRPO = Callable[..., AuroraGRPOTrainer]
THREAD = "read ahead"

#: Options, and how many generations the run has: each a batch of two rows.
SCHEDULES = {
    "a batch a step": ({"max_steps": 3}, 3),
    "several epochs": ({"max_steps": 6}, 6),  # of six rows
    "steps per generation": ({"max_steps": 4, "steps_per_generation": 2, "per_device_train_batch_size": 2}, 2),
    "iterations": ({"max_steps": 4, "num_iterations": 2}, 2),
    "accumulation over a generation": (
        {"max_steps": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
        2,
    ),
    "generations within a step": (
        {"max_steps": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 1},
        3,  # an epoch of three
    ),
    "epochs that end within a step": (
        {"max_steps": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 1},
        6,
    ),
    "the run ends within the epoch": (
        {"max_steps": 1, "gradient_accumulation_steps": 2, "steps_per_generation": 1},
        2,
    ),
    "rows in the file's order": ({"max_steps": 4, "shuffle_dataset": False}, 4),
}


class Readings:
    """What is read, and in which thread."""

    def __init__(self, encode: SampleEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: list[str] = []
        self.ahead: list[str] = []
        load = encode.load

        def watched(sample: AVSample) -> Any:
            self.keys.append(sample.key)
            if threading.current_thread().name.startswith(THREAD):
                self.ahead.append(sample.key)
            return load(sample)

        monkeypatch.setattr(encode, "load", watched)


@pytest.fixture
def readings(encode: SampleEncoder, monkeypatch: pytest.MonkeyPatch) -> Readings:
    return Readings(encode, monkeypatch)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD)]


def rolled_out(make_grpo: MakeGRPO, options: dict, samples: list[AVSample]) -> list[str]:
    """Keys of the rows as rollouts were asked for them, each once a generation."""
    asked: list[str] = []

    def script(sample: AVSample, index: int) -> str:
        asked.append(sample.key)
        return mixed(sample, index)

    make_grpo(script=script, samples=samples, **options).train()
    return asked[::2]


@pytest.mark.parametrize(("options", "num_generations"), SCHEDULES.values(), ids=SCHEDULES)
def test_every_row_is_read_once_and_all_but_the_first_batch_ahead(
    make_grpo: MakeGRPO, train_samples: list[AVSample], readings: Readings, options: dict, num_generations: int
) -> None:
    samples = train_samples[:6]
    asked = rolled_out(make_grpo, options, samples)
    batch = len(asked) // num_generations
    assert readings.keys == asked, "rows are read in order, each once a generation, and none that is not used"
    assert readings.ahead == asked[batch:]
    assert threads() == []


@pytest.mark.parametrize("num_epochs", [1, 2])
def test_a_run_learns_the_same_with_reading_ahead_and_without(
    make_grpo: MakeGRPO, train_samples: list[AVSample], monkeypatch: pytest.MonkeyPatch, num_epochs: int
) -> None:
    options = {"samples": train_samples[:4], "max_steps": 2 * num_epochs, "seed": 3}
    ahead = make_grpo(**options)
    ahead.train()
    without = make_grpo(**options)
    monkeypatch.setattr(without, "_next_generation_batch", list)
    without.train()
    for (name, one), other in zip(ahead.model.named_parameters(), without.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_an_error_names_its_sample_in_the_step_that_uses_it(
    make_grpo: MakeGRPO, train_samples: list[AVSample], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    good, bad = train_samples[:2], train_samples[2:4]
    bad = [dataclasses.replace(x, frame_paths=(str(tmp_path / "broken.png"), *x.frame_paths[1:])) for x in bad]
    trainer = make_grpo(samples=[*good, *bad], shuffle_dataset=False, max_steps=2)
    with pytest.raises(MediaError, match=f"{bad[0].uid}.*broken.png"):
        trainer.train()
    assert trainer.state.global_step == 1
    assert threads() == []


class End(TrainerCallback):
    """Ends the run after a step as Ctrl-C does."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt


class Terminate(TrainerCallback):
    """Sends SIGTERM while the next batch is read."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("callback", "error"), [(End, KeyboardInterrupt), (Terminate, TrainingInterrupted)])
def test_a_run_that_is_ended_leaves_no_thread(
    make_grpo: MakeGRPO, train_samples: list[AVSample], callback: type[TrainerCallback], error: type[BaseException]
) -> None:
    trainer = make_grpo(samples=train_samples[:6], max_steps=3, callbacks=[callback()])
    with pytest.raises(error):
        trainer.train()
    assert trainer.state.global_step < 3
    assert threads() == [] and not trainer._ahead._begun


def test_an_evaluation_amid_training_is_not_read_ahead(
    make_grpo: MakeGRPO, train_samples: list[AVSample], readings: Readings
) -> None:
    trainer = make_grpo(
        samples=train_samples[2:6], shuffle_dataset=False, max_steps=2, eval_strategy="steps", eval_steps=1,
        per_device_eval_batch_size=2, num_generations_eval=2,
    )  # fmt: skip
    trainer.train()
    assert readings.ahead == [sample.key for sample in train_samples[4:6]]
    assert set(readings.keys) > {sample.key for sample in train_samples[:2]}


def test_upcoming_batches_are_given_in_order_whatever_was_looked_at() -> None:
    batches = UpcomingBatches(iter(range(5)))
    assert batches.look_ahead(0, 1) == 1
    assert [next(batches), next(batches), next(batches)] == [0, 1, 2]
    assert batches.look_ahead(1, 1) == 2, "drawn for one optimiser step, and used later in it"
    assert batches.look_ahead(1, 4) is None
    assert list(batches) == [3, 4]
    with pytest.raises(StopIteration):
        next(batches)
