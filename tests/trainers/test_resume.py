"""A run that is killed or terminated and resumed logs and learns what the unbroken run does, to the last bit.

On one CPU thread, with the seeds in the configuration, and with a log at every step: a resumed run averages its first
log over the steps since the checkpoint.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback

from aurora_rl.data.sample import AVSample
from aurora_rl.files.plain import NotPlainFileError
from aurora_rl.models.checkpoint_files import CheckpointError
from aurora_rl.trainers.epoch_order import EpochOrder
from aurora_rl.trainers.interruption import TerminationSignal, TrainingInterrupted
from aurora_rl.trainers.sft_config import AuroraSFTConfig

#: Logged values that measure the machine, or (TRL's token count in SFT) start anew.
VOLATILE = ("step_time", "num_tokens", "runtime", "per_second")


class Kill(TrainerCallback):
    """Ends a run the hard way after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


class Terminate(TrainerCallback):
    """Sends SIGTERM during a step, as a scheduler does that wants the machine back."""

    def __init__(self, trainer: Trainer, step: int) -> None:
        self.trainer = trainer
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
            while not self.trainer._termination.is_received:  # by another thread
                time.sleep(0.01)


def letters(completions: list, **columns: Any) -> list[float]:
    """Differs between sampled completions, even of a random model."""
    return [sum(map(ord, completion[0]["content"])) % 7 / 7 for completion in completions]


def logs_of(trainer: Trainer) -> list[dict[str, Any]]:
    logs = [log for log in trainer.state.log_history if "loss" in log or "eval_loss" in log]
    return [{name: value for name, value in log.items() if not name.endswith(VOLATILE)} for log in logs]


def assert_resumes_exactly(make: Callable[..., Trainer], *, killed_after: int, **options: Any) -> None:
    unbroken = make(**options)
    unbroken.train()
    with pytest.raises(KeyboardInterrupt):
        make(callbacks=[Kill(killed_after)], **options, output_dir=f"{unbroken.args.output_dir}_killed").train()
    resumed = make(**options, output_dir=f"{unbroken.args.output_dir}_killed")
    resumed.train(resume_from_checkpoint=True)
    assert_same(unbroken, resumed)


def assert_goes_on_exactly(make: Callable[..., Trainer], *, sigterm_in: int, saved_after: int, **options: Any) -> None:
    """Without checkpoints but the one that SIGTERM asks for."""
    unbroken = make(**options)
    unbroken.train()
    options["output_dir"] = f"{unbroken.args.output_dir}_terminated"
    terminated = make(**options)
    terminated.add_callback(Terminate(terminated, sigterm_in))
    with pytest.raises(TrainingInterrupted) as ended:
        terminated.train()
    assert ended.value.code == 143
    assert [path.name for path in Path(terminated.args.output_dir).glob("checkpoint-*")] == [
        f"checkpoint-{saved_after}"
    ]
    resumed = make(**options)
    resumed.train(resume_from_checkpoint=True)
    assert_same(unbroken, resumed)


def assert_same(unbroken: Trainer, resumed: Trainer) -> None:
    expected, found = logs_of(unbroken), logs_of(resumed)
    assert len(expected) == len(found)
    for before, after in zip(expected, found, strict=True):
        assert before == after, f"step {before['step']}"
    assert len({log["loss"] for log in expected if "loss" in log}) > 1
    parameters = dict(resumed.model.named_parameters())
    assert all(parameters[name].equal(parameter) for name, parameter in unbroken.model.named_parameters())


@pytest.mark.parametrize(
    "options",
    [
        # Eight samples in batches of two: four steps an epoch.
        {"max_steps": 4, "save_steps": 2, "killed_after": 3},
        {"max_steps": 8, "save_steps": 2, "killed_after": 7, "peft": True, "dropout": 0.3},
        {"max_steps": 4, "save_steps": 2, "killed_after": 3, "gradient_accumulation_steps": 2, "eval_steps": 1},
    ],
    ids=["first epoch", "second epoch, dropout", "accumulated, evaluated"],
)
def test_sft(make_sft: Callable[..., Trainer], train_samples: list[AVSample], options: dict) -> None:
    evaluation = {"eval_strategy": "steps"} if "eval_steps" in options else {}
    assert_resumes_exactly(make_sft, samples=train_samples[:8], save_strategy="steps", **options, **evaluation)


@pytest.mark.parametrize(
    "options",
    [
        # Eight prompts, two a generation batch: four batches an epoch. Rollouts are sampled, not scripted.
        {"max_steps": 4, "save_steps": 2, "killed_after": 3},
        {"max_steps": 6, "save_steps": 5, "killed_after": 6, "peft": True, "dropout": 0.3},
        {"max_steps": 5, "save_steps": 4, "killed_after": 5, "peft": True, "eval_steps": 2},
        {
            "max_steps": 8,
            "save_steps": 4,
            "killed_after": 7,
            "num_iterations": 2,
            "steps_per_generation": 2,
            "peft": True,
        },
    ],
    ids=["first epoch", "second epoch, dropout", "end of an epoch, evaluated", "batches used several times"],
)
def test_grpo(make_grpo: Callable[..., Trainer], train_samples: list[AVSample], options: dict) -> None:
    evaluation = {"eval_strategy": "steps", "per_device_eval_batch_size": 4} if "eval_steps" in options else {}
    make = {"samples": train_samples[:8], "script": None, "rewards": [letters], "save_strategy": "steps"}
    assert_resumes_exactly(make_grpo, **make, **options, **evaluation)


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 6, "sigterm_in": 5, "saved_after": 5, "peft": True, "dropout": 0.3, "save_only_model": True},
        {"max_steps": 4, "sigterm_in": 2, "saved_after": 2, "gradient_accumulation_steps": 2, "eval_steps": 1},
    ],
    ids=["second epoch, dropout, weights alone are saved", "accumulated, evaluated"],
)
def test_sft_after_sigterm(make_sft: Callable[..., Trainer], train_samples: list[AVSample], options: dict) -> None:
    evaluation = {"eval_strategy": "steps"} if "eval_steps" in options else {}
    assert_goes_on_exactly(make_sft, samples=train_samples[:8], **options, **evaluation)


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 6, "sigterm_in": 5, "saved_after": 5, "peft": True, "dropout": 0.3},
        {"max_steps": 4, "sigterm_in": 2, "saved_after": 2, "eval_steps": 2, "per_device_eval_batch_size": 4},
        # A generation batch lasts four steps: the checkpoint waits for its end.
        {"max_steps": 8, "sigterm_in": 2, "saved_after": 4, "num_iterations": 2, "steps_per_generation": 2},
    ],
    ids=["second epoch, dropout", "evaluated", "batches used several times"],
)
def test_grpo_after_sigterm(make_grpo: Callable[..., Trainer], train_samples: list[AVSample], options: dict) -> None:
    evaluation = {"eval_strategy": "steps"} if "eval_steps" in options else {}
    make = {"samples": train_samples[:8], "script": None, "rewards": [letters]}
    assert_goes_on_exactly(make_grpo, **make, **options, **evaluation)


class KillBeforeTheModel(TrainerCallback):
    """Ends a run between its last checkpoint and its final model."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt


class Steps(TrainerCallback):
    """Counts the optimiser steps that a run takes itself."""

    def __init__(self) -> None:
        self.count = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.count += 1


def run(make: Callable[..., Trainer], folder: Path, *callbacks: TrainerCallback, **options: Any) -> int:
    """What a recipe does, always with `--resume_from_checkpoint true`; the number of steps that were taken."""
    steps = Steps()
    trainer = make(callbacks=[steps, *callbacks], output_dir=str(folder), resume_from_checkpoint="true", **options)
    with contextlib.suppress(KeyboardInterrupt):
        trainer.run_to_its_end()
    return steps.count


def files_of(folder: Path) -> dict[str, bytes]:
    """The final model, and the names of the checkpoints."""
    checkpoints = {path.name: b"" for path in folder.glob("checkpoint-*")}
    return checkpoints | {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


#: Three steps of four in an epoch; the best checkpoint may be any.
THREE = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
BEST = {"save_total_limit": 1, "load_best_model_at_end": True, "metric_for_best_model": "loss"}


@pytest.mark.parametrize("options", [THREE, THREE | BEST], ids=["the last model", "the best model"])
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_the_same_command_ends_with_the_model_of_an_unbroken_run_whenever_it_was_killed(
    stage: str, options: dict, request: pytest.FixtureRequest, train_samples: list[AVSample], tmp_path: Path
) -> None:
    make = request.getfixturevalue(f"make_{stage}")
    options = {"samples": train_samples[:8], **options}
    if stage == "grpo":
        options |= {"script": None, "rewards": [letters], "per_device_eval_batch_size": 4}
    assert run(make, tmp_path / "unbroken", **options) == 3
    expected = files_of(tmp_path / "unbroken")
    assert "model.safetensors" in expected and "checkpoint-3" in expected
    folder = tmp_path / "killed"
    assert run(make, folder, Kill(2), **options) == 2  # after checkpoint-1
    assert run(make, folder, KillBeforeTheModel(), **options) == 2  # step 2 and 3
    assert not (folder / "trainer_state.json").exists()
    assert run(make, folder, **options) == 0
    assert files_of(folder) == expected
    assert run(make, folder, **options) == 0  # it has ended
    assert files_of(folder) == expected


def test_without_checkpoints_a_run_starts_from_the_beginning_says_so_and_is_not_repeated(
    make_sft: Callable[..., Trainer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(make_sft, tmp_path / "a") == 2
    assert "no checkpoint to resume from" in caplog.text and "starting from the beginning" in caplog.text
    before = files_of(tmp_path / "a")
    caplog.clear()
    caplog.set_level("INFO")
    assert run(make_sft, tmp_path / "a") == 0
    assert "the run has ended" in caplog.text
    assert files_of(tmp_path / "a") == before
    assert run(make_sft, tmp_path / "a", max_steps=3) == 3, "a longer run is another one"


def test_checkpoints_of_weights_alone_are_not_taken_for_a_state_to_go_on_from(
    make_sft: Callable[..., Trainer], train_samples: list[AVSample], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "samples": train_samples[:8]}
    run(make_sft, tmp_path / "unbroken", **options)
    assert run(make_sft, tmp_path / "killed", Kill(3), save_only_model=True, **options) == 3
    assert run(make_sft, tmp_path / "killed", save_only_model=True, **options) == 3
    assert "2 checkpoint(s) of weights alone" in caplog.text
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "unbroken")


@pytest.mark.parametrize("part", ["seg_head.projector", "lm_head", "embed_tokens"])
def test_a_checkpoint_that_lacks_a_weight_is_refused_by_name(
    make_sft: Callable[..., Trainer], tmp_path: Path, part: str
) -> None:
    run(make_sft, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    file = tmp_path / "checkpoint-1" / "model.safetensors"
    weights = load_file(file)
    save_file({name: weight for name, weight in weights.items() if part not in name}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"the checkpoint lacks the weight .*{part}"):
        run(make_sft, tmp_path, max_steps=2)


@pytest.mark.parametrize("part", ["seg_head.projector", "lora_A"])
def test_an_adapters_checkpoint_that_lacks_a_weight_is_refused_by_name(
    make_sft: Callable[..., Trainer], tmp_path: Path, part: str
) -> None:
    run(make_sft, tmp_path, max_steps=1, save_strategy="steps", save_steps=1, peft=True)
    file = tmp_path / "checkpoint-1" / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: weight for name, weight in weights.items() if part not in name}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"checkpoint-1 lacks the weight .*{part}"):
        run(make_sft, tmp_path, max_steps=2, peft=True)


def test_a_pipe_in_a_checkpoint_is_refused_and_not_waited_for(make_sft: Callable[..., Trainer], tmp_path: Path) -> None:
    run(make_sft, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    file = tmp_path / "checkpoint-1" / "rng_state.pth"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(NotPlainFileError, match=r"rng_state\.pth is no plain file but a pipe"):
        run(make_sft, tmp_path, max_steps=2)


def test_a_kill_while_a_checkpoint_replaces_another_loses_neither(
    make_sft: Callable[..., Trainer], tmp_path: Path
) -> None:
    run(make_sft, tmp_path, save_strategy="steps", save_steps=2)
    (tmp_path / "trainer_state.json").unlink()
    (tmp_path / "incomplete" / "replaced").mkdir(parents=True)
    (tmp_path / "checkpoint-2").rename(tmp_path / "incomplete" / "checkpoint-2")
    assert run(make_sft, tmp_path, save_strategy="steps", save_steps=2) == 0
    assert (tmp_path / "checkpoint-2").is_dir()


def test_sigterm_in_the_last_step_changes_nothing(make_sft: Callable[..., Trainer]) -> None:
    trainer = make_sft()
    trainer._termination.grace_s = 600.0  # as beside other processes
    trainer.add_callback(Terminate(trainer, 2))
    assert trainer.train().global_step == 2
    assert trainer._termination._countdown is None


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_process_alone_ends_its_step_however_long_that_takes(
    stage: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up = []
    monkeypatch.setattr(TerminationSignal, "_give_up", lambda self, seconds: given_up.append(seconds))
    trainer = request.getfixturevalue(f"make_{stage}")(stop_grace_s=0.0)
    trainer.add_callback(Terminate(trainer, 1))  # the step itself takes longer than no time
    with pytest.raises(TrainingInterrupted):
        trainer.train()
    assert given_up == []
    assert Path(trainer.args.output_dir, "checkpoint-1").is_dir()


def test_one_of_several_processes_has_its_time(make_sft: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch):
    assert make_sft(stop_grace_s=300.0)._termination.grace_s is None
    monkeypatch.setattr(AuroraSFTConfig, "world_size", 2)
    assert make_sft(stop_grace_s=300.0)._termination.grace_s == 300.0


def test_every_epoch_has_an_order_of_its_own_whatever_went_before(make_grpo: Callable[..., Trainer]) -> None:
    sampler = make_grpo()._get_train_sampler()
    assert isinstance(sampler, EpochOrder)
    epochs = []
    for epoch in (0, 1, 2):
        sampler.epoch = lambda epoch=epoch: epoch
        epochs.append(list(sampler))
    assert list(sampler) == epochs[2]
    assert epochs[0] != epochs[1] != epochs[2]
    assert sampler.rows(1) == list(dict.fromkeys(epochs[1])) != sampler.rows(-1)
    assert all(len(order) == len(sampler) and sorted(order) == sorted(epochs[0]) for order in epochs)
    assert all(first == second for first, second in zip(epochs[1][::2], epochs[1][1::2], strict=True)), "groups of two"
