"""One step off-policy: the server samples the next batch while this one trains, with weights that stay the same.

The server is a thread here; `tests/rollout/test_server.py` has a run by a real one.
"""

import itertools
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from aurora_rl.data.sample import AVSample
from aurora_rl.models.mllm import EncodedPrompt
from aurora_rl.rollout.base import Rollouts
from aurora_rl.trainers import dynamic_sampling
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig

MakeOffPolicy = Callable[..., AuroraGRPOTrainer]
OPTIONS = {
    "use_vllm": True,
    "vllm_mode": "server",
    "one_step_off_policy": True,
    "mask_loss_on": "off",
    "beta": 0.0,
    "lr_scheduler_type": "constant",
}
#: Seconds after which a wait has failed.
LONG = 30.0


class Server:
    """Samples tokens that depend on the step of its weights, on the prompt and on the seed.

    sampled   (step of the weights, seed) of each row, batch by batch, in the order in which they were asked for
    ahead     the same of those that were begun while others were trained on
    """

    def __init__(self, trainer: AuroraGRPOTrainer) -> None:
        self.trainer = trainer
        self.sampled: list[list[tuple[int, int]]] = []
        self.ahead: list[list[tuple[int, int]]] = []
        self.synced: list[int] = []
        self.trains = threading.Event()
        self.running = False
        compute_loss = trainer._compute_loss

        def watched(*args: Any) -> Any:
            self.trains.set()
            return compute_loss(*args)

        trainer._compute_loss = watched  # type: ignore[method-assign]

    def sync_weights(self) -> None:
        assert not self.running, "weights change while completions are sampled"
        self.synced.append(self.trainer.state.global_step)

    def generate_rows(
        self, rows: Sequence[EncodedPrompt], *, seeds: list[int], num_generations: int, profiler: Any
    ) -> Rollouts:
        with profiler:
            return self._sample(rows, seeds)

    def begin_rows(
        self, rows: Sequence[EncodedPrompt], *, seeds: list[int], num_generations: int
    ) -> Callable[[], Rollouts]:
        self.trains.clear()
        self.running, found = True, []

        def answer() -> None:
            assert self.trains.wait(LONG), "nothing is trained while the server samples"
            time.sleep(0.05)  # and goes on
            found.append(self._sample(rows, seeds))
            self.ahead.append(self.sampled[-1])
            self.running = False

        thread = threading.Thread(target=answer)
        thread.start()

        def rollouts() -> Rollouts:
            thread.join()
            return found[0]

        return rollouts

    def _sample(self, rows: Sequence[EncodedPrompt], seeds: list[int]) -> Rollouts:
        self.sampled.append([(self.synced[-1], seed) for seed in seeds])
        ids = [completion(row, self.synced[-1], seed) for row, seed in zip(rows, seeds, strict=True)]
        return Rollouts(ids, [[-1.0 - 0.01 * token for token in row] for row in ids])


def completion(prompt: EncodedPrompt, step: int, seed: int) -> list[int]:
    """Words of the prompt's text; the first one tells which prompt it was."""
    words = prompt.prompt_ids[-8:]
    rng = random.Random(f"{step} {seed}")
    return [sum(prompt.prompt_ids) % 50 + 50, *rng.choices(words, k=rng.randrange(2, 6))]


@pytest.fixture
def make_off_policy(make_grpo: Callable, monkeypatch: pytest.MonkeyPatch, encode: Any) -> MakeOffPolicy:
    """A trainer on a server, which is its `vllm_generation`; its completions must be of their own rows."""
    monkeypatch.setattr("aurora_rl.trainers.grpo.vllm_engine", lambda trainer, loaded: Server(trainer))

    def own_reward(completion_ids: list[list[int]], sample: list[AVSample], **_: Any) -> list[float]:
        assert [ids[0] for ids in completion_ids] == [sum(encode(x).prompt.prompt_ids) % 50 + 50 for x in sample]
        return [float(sum(ids) % 7) for ids in completion_ids]

    def make(**options: Any) -> AuroraGRPOTrainer:
        return make_grpo(script=None, rewards=[own_reward], **{**OPTIONS, **options})

    return make


def lags(trainer: AuroraGRPOTrainer) -> list[float]:
    return [log["sampling/lag_steps"] for log in trainer.state.log_history if "sampling/lag_steps" in log]


def test_the_next_batch_is_sampled_while_this_one_is_trained_on(make_off_policy: MakeOffPolicy) -> None:
    trainer = make_off_policy(max_steps=3)
    trainer.train()
    server = trainer.vllm_generation
    assert [batch[0][0] for batch in server.sampled] == [0, 0, 1], "sampled by the weights of the step before"
    assert server.ahead == server.sampled[1:]
    assert server.synced == [0, 1], "nobody samples with those of the last steps"
    assert len({seed for batch in server.sampled for _, seed in batch}) == 12
    assert lags(trainer) == [0, 1, 1]


def test_without_the_option_each_batch_is_sampled_by_the_weights_that_learn_from_it(
    make_off_policy: MakeOffPolicy,
) -> None:
    trainer = make_off_policy(max_steps=2, one_step_off_policy=False)
    trainer.train()
    assert [batch[0][0] for batch in trainer.vllm_generation.sampled] == [0, 1]
    assert trainer.vllm_generation.ahead == lags(trainer) == []


def test_further_prompts_are_sampled_by_the_weights_of_their_batch_with_seeds_of_their_own(
    make_off_policy: MakeOffPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each step's batch both groups are said to be dead, and of the further ones none."""
    live = itertools.cycle([False, True])
    monkeypatch.setattr(dynamic_sampling, "living_groups", lambda *_: torch.full((2,), next(live)))
    trainer = make_off_policy(max_steps=2, one_step_off_policy=False, dynamic_sampling_rounds=3)
    trainer.train()
    server = trainer.vllm_generation
    assert [batch[0][0] for batch in server.sampled] == [0, 0, 1, 1] and server.synced == [0, 1]
    assert len({seed for batch in server.sampled for _, seed in batch}) == 16
    assert [log["dynamic_sampling/rounds"] for log in trainer.state.log_history[:2]] == [1, 1]


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"max_steps": 4}, [0, 1, 1, 1]),  # an epoch of three
        ({"max_steps": 4, "num_iterations": 2}, [0, 2]),
        ({"max_steps": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 1}, [0, 1]),
    ],
    ids=["epochs", "iterations", "generations within a step"],
)
def test_the_lag_is_one_generation_batch(
    make_off_policy: MakeOffPolicy, train_samples: list[AVSample], options: dict, expected: list[float]
) -> None:
    trainer = make_off_policy(samples=train_samples[:6], **options)
    trainer.train()
    assert lags(trainer) == expected
    server = trainer.vllm_generation
    assert server.ahead == server.sampled[1:]


def test_an_evaluation_waits_until_the_server_has_sampled_with_the_weights_it_had(
    make_off_policy: MakeOffPolicy,
) -> None:
    trainer = make_off_policy(
        max_steps=2, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=4, num_generations_eval=2
    )
    trainer.train()
    steps = [batch[0][0] for batch in trainer.vllm_generation.sampled]
    assert steps == [0, 0, 1, 2]  # batch 0, batch 1 ahead, evaluation, evaluation
    assert lags(trainer) == [0, 1]


class EndAfterSaving(TrainerCallback):
    """Ends the run as Ctrl-C does, when a checkpoint is written."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt


def test_a_resumed_run_learns_from_what_was_sampled_before(make_off_policy: MakeOffPolicy, tmp_path: Path) -> None:
    whole = make_off_policy(max_steps=3, output_dir=str(tmp_path / "whole"))
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        saving = {"save_strategy": "steps", "save_steps": 1, "callbacks": [EndAfterSaving()]}
        make_off_policy(max_steps=3, output_dir=str(tmp_path / "run"), **saving).train()
    checkpoint = tmp_path / "run/checkpoint-1"
    resumed = make_off_policy(max_steps=3)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-5)
    assert lags(resumed) == lags(whole)
    assert resumed.vllm_generation.sampled == whole.vllm_generation.sampled[2:]

    (checkpoint / "rollouts_ahead_0.json").unlink()  # the control, as if the run before had been on policy
    without = make_off_policy(max_steps=2)
    without.train(resume_from_checkpoint=str(checkpoint))
    assert lags(without) == [0, 0]
    assert losses(without)[1] != pytest.approx(losses(whole)[1], rel=1e-3)


def losses(trainer: AuroraGRPOTrainer) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"use_vllm": False}, "only a vLLM server samples"),
        ({"vllm_mode": "colocate"}, "only a vLLM server samples"),
        ({"vllm_importance_sampling_correction": False}, "older policy's completions for its own"),
    ],
)
def test_what_could_not_be_right_is_refused(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"one_step_off_policy is true, but.*{message}"):
        AuroraGRPOConfig(output_dir="x", use_cpu=True, bf16=False, **{**OPTIONS, **changed})
