"""Dead groups give their places to living groups of further prompts, and the step is that of a batch of these prompts."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from aurora_rl.data.sample import AVSample
from aurora_rl.trainers import shared_towers
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from tests.trainers.test_prompt_sharing import Recorder, worst_difference

MakeGRPO = Callable[..., AuroraGRPOTrainer]
#: Four prompts of two completions each, in the order of the data.
STEP = {
    **{"per_device_train_batch_size": 8, "num_generations": 2, "max_steps": 1, "shuffle_dataset": False},
    **{"beta": 0.1, "mask_loss_on": "all", "max_grad_norm": 0.0},
}
#: Places of samples whose completions all earn the same.
DEAD = {1, 3, 4}


def by_copy(sample: AVSample, index: int) -> str:
    """The gold chain, without its `[SEG]` in every second completion; some rows have more words."""
    text = sample.chain if index % 2 else sample.chain.replace("[SEG]", "hidden")
    return text.replace("Answer", f"Answer{' so' * (sample.row % 3)}")


def alive_but(dead: set[str]) -> Callable[..., list[float]]:
    def reward(completions: list, sample: list[AVSample], **_: Any) -> list[float]:
        return [0.3 if row.key in dead else float(index % 2) for index, row in enumerate(sample)]

    return reward


class Batches:
    """Records what a trainer rolls out and what it trains on."""

    def __init__(self, trainer: AuroraGRPOTrainer) -> None:
        self.rolled_out: list[dict[str, Any]] = []
        self.trained: list[dict[str, Any]] = []
        for name, batches in (("_roll_out", self.rolled_out), ("_generate_and_score_completions", self.trained)):
            setattr(trainer, name, self._recorded(getattr(trainer, name), batches))

    @staticmethod
    def _recorded(method: Callable[..., dict[str, Any]], batches: list[dict[str, Any]]) -> Callable[..., Any]:
        def recorded(*args: Any) -> dict[str, Any]:
            batches.append(method(*args))
            return batches[-1]

        return recorded


def run(make_grpo: MakeGRPO, samples: list[AVSample], dead: set[int] = DEAD, **options: Any) -> tuple[Any, Batches, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    recorder = Recorder()
    reward = alive_but({samples[place].key for place in dead})
    trainer = make_grpo(rewards=[reward], samples=samples, script=by_copy, callbacks=[recorder], **{**STEP, **options})
    batches = Batches(trainer)
    trainer.train()
    return trainer, batches, recorder.steps[0]


def keys(batch: dict[str, Any]) -> list[str]:
    return [row.sample.key for row in batch["encoded_rows"]][::2]


def test_first(make_grpo: MakeGRPO, train_samples: list[AVSample]) -> None:
    samples = train_samples[:8]
    trainer, batches, gradients = run(make_grpo, samples, dynamic_sampling_rounds=3)
    print({k: v for k, v in trainer.state.log_history[0].items()})
    print([keys(b) for b in batches.rolled_out], keys(batches.trained[0]))
    print([s.key for s in samples])
    chosen = [samples[place] for place in (0, 5, 2, 6)]
    other, others, expected = run(make_grpo, chosen, set())
    print(other.state.log_history[0])
    print(worst_difference(gradients, expected))
