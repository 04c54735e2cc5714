"""Dead groups give their places to living groups of further prompts; the step is that of a batch of these prompts."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aurora_rl.assembly.model import freeze
from aurora_rl.data.mixing import MixedSet
from aurora_rl.data.sample import AVSample
from aurora_rl.models.loading import LoadedModel
from aurora_rl.models.tower_outputs import TowerOutputs
from aurora_rl.trainers import shared_towers
from aurora_rl.trainers.dynamic_sampling import RefillingTrainer, living_groups, places_to_fill, replace_groups
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from tests.trainers.test_prompt_sharing import Recorder, worst_difference
from tests.trainers.test_resume import assert_resumes_exactly
from tests.trainers.test_tower_outputs import TOWERS

MakeGRPO = Callable[..., AuroraGRPOTrainer]
#: Four prompts of two completions in two micro-batches, in the order of the data. The losses count tokens and masks.
STEP = {
    **{"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_generations": 2, "max_steps": 1},
    **{"shuffle_dataset": False, "beta": 0.1, "mask_loss_on": "all", "loss_type": "dapo", "max_grad_norm": 0.0},
}
COST = ("dead_before", "dead_after", "rounds", "sampled_per_trained")


def by_copy(sample: AVSample, index: int) -> str:
    """The gold chain, without its `[SEG]` in every second completion, and longer in some rows."""
    text = sample.chain if index % 2 else sample.chain.replace("[SEG]", "hidden")
    return text.replace("Answer:", f"Answer:{' the' * (sample.row % 5)}")


class Run:
    """A run on samples of which some are dead.

    rolled_out  the batches that were sampled, those of further prompts too
    trained     the batch that was trained on
    gradients   those of the last step
    log         the first line
    """

    def __init__(self, make_grpo: MakeGRPO, samples: list[AVSample], dead: set[int], **options: Any) -> None:
        dead_keys = {samples[place].key for place in dead}

        def reward(completions: list, sample: list[AVSample], **_: Any) -> list[float]:
            return [0.3 if row.key in dead_keys else float(index % 2) for index, row in enumerate(sample)]

        torch.manual_seed(0)
        recorder = Recorder()
        options = {"rewards": [reward], "samples": samples, "script": by_copy, **STEP, **options}
        self.trainer = make_grpo(callbacks=[recorder], **options)
        self.rolled_out: list[dict[str, Any]] = []
        roll_out, generate = self.trainer._roll_out, self.trainer._generate_and_score_completions
        self.trainer._roll_out = lambda *args: self.rolled_out.append(roll_out(*args)) or self.rolled_out[-1]
        self.trainer._generate_and_score_completions = self._kept(generate)
        self.trainer.train()
        self.gradients, self.log = recorder.steps[-1], self.trainer.state.log_history[0]

    def _kept(self, generate: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        def kept(inputs: list[dict[str, Any]]) -> dict[str, Any]:
            self.trained = generate(inputs)
            return self.trained

        return kept

    @property
    def cost(self) -> list[float]:
        return [self.log[f"dynamic_sampling/{name}"] for name in COST]


def prompts_of(batch: dict[str, Any], samples: list[AVSample]) -> list[int]:
    """Places of a batch's prompts among the samples."""
    keys = [sample.key for sample in samples]
    return [keys.index(row.sample.key) for row in batch["encoded_rows"][::2]]


def test_a_refilled_step_is_the_step_of_the_prompts_that_are_left(
    make_grpo: MakeGRPO, loaded: LoadedModel, train_samples: list[AVSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen towers run once for each clip, also where all processes must run the same modules."""
    freeze(loaded.model, TOWERS)
    monkeypatch.setattr(shared_towers, "new_tower_outputs", lambda *_, **__: TowerOutputs(in_step=True))
    samples = train_samples[:12]
    run = Run(make_grpo, samples, {1, 3, 8}, dynamic_sampling_rounds=3, num_iterations=2)
    assert [prompts_of(batch, samples) for batch in run.rolled_out] == [[0, 1, 2, 3], [8, 9], [10]]
    assert prompts_of(run.trained, samples) == [0, 9, 2, 10]
    assert run.cost == [0.5, 0.0, 2.0, 7 / 4]

    first, again = (
        run.rolled_out[0],
        Run(make_grpo, [samples[place] for place in (0, 9, 2, 10)], set(), num_iterations=2),
    )
    widths = [batch["completion_ids"].size(1) for batch in run.rolled_out]
    assert widths[0] < max(widths[1:]) == run.trained["completion_ids"].size(1), "no row is padded anew"
    for name in ("completion_ids", "completion_mask", "ref_per_token_logps", "old_per_token_logps", "advantages"):
        for row in (0, 1, 4, 5):
            assert run.trained[name][row].flatten()[: widths[0]].equal(first[name][row].flatten()[: widths[0]]), name
    assert all(run.trained["encoded_rows"][row] is first["encoded_rows"][row] for row in (0, 1, 4, 5))
    for name in ("num_items_in_batch", "masks_per_forward", "advantages", "mask_weights"):
        torch.testing.assert_close(run.trained[name], again.trained[name], msg=name)
    assert worst_difference(run.gradients, again.gradients) < 1e-4
    for name in ("loss", "mask_loss", "kl"):
        assert run.log[name] == pytest.approx(again.log[name], rel=1e-4, abs=1e-6), name
    # The policy's numbers are those of the prompts whose turn it was; the tokens are all.
    assert run.log["reward"] == pytest.approx((0.5 + 0.3 + 0.5 + 0.3) / 4) and run.log["frac_reward_zero_std"] == 0.5
    assert run.log["num_tokens"] > 1.5 * again.log["num_tokens"]


def test_rounds_end_at_the_bound_and_dead_groups_stay(make_grpo: MakeGRPO, train_samples: list[AVSample]) -> None:
    """Behind the last row come the first ones."""
    samples = train_samples[:8]
    run = Run(make_grpo, samples, {1, 3}, dynamic_sampling_rounds=1)
    assert prompts_of(run.trained, samples) == [0, 0, 2, 3]
    assert run.cost == [0.5, 0.25, 1.0, 6 / 4]
    assert run.trained["advantages"].ne(0).tolist() == [True] * 6 + [False] * 2


def test_a_living_batch_costs_nothing(make_grpo: MakeGRPO, train_samples: list[AVSample]) -> None:
    run = Run(make_grpo, train_samples[:4], set(), dynamic_sampling_rounds=3)
    assert run.rolled_out == [run.trained] and run.cost == [0.0, 0.0, 0.0, 1.0]


def test_an_evaluation_is_not_refilled(make_grpo: MakeGRPO, rollout: Callable[..., dict[str, Any]]) -> None:
    trainer = make_grpo(rewards=[lambda completions, **_: [0.5] * len(completions)], dynamic_sampling_rounds=2)
    assert len(rollout(trainer, train=False)["encoded_rows"]) == 4
    assert not [name for name in trainer._metrics["eval"] if name.startswith("dynamic_sampling")]


def test_a_resumed_run_draws_the_same_prompts(make_grpo: MakeGRPO, train_samples: list[AVSample]) -> None:
    """Of two generation batches in each step, and over the end of an epoch."""
    trainers: list[AuroraGRPOTrainer] = []

    def halves(completions: list, **_: Any) -> list[float]:
        return [float(sum(map(ord, completion[0]["content"])) % 2) for completion in completions]

    def make(**options: Any) -> AuroraGRPOTrainer:
        trainers.append(make_grpo(script=None, rewards=[halves], samples=train_samples[:8], **options))
        return trainers[-1]

    generations = {"gradient_accumulation_steps": 2, "steps_per_generation": 1, "dynamic_sampling_rounds": 2}
    steps = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "killed_after": 3}
    assert_resumes_exactly(make, **generations, **steps)
    rounds = [log["dynamic_sampling/rounds"] for log in trainers[0].state.log_history if "loss" in log]
    assert len(rounds) == 4 and sum(rounds[2:]) > 0, "nothing was refilled where the run was resumed"


def test_groups_live_whose_rewards_differ_by_more_than_rounding() -> None:
    nan = torch.nan
    rewards = torch.tensor(
        [
            *([0.1, 0.2], [0.3, 0.0]),  # the same but for rounding
            *([0.1, 0.2], [0.3, 0.1]),
            *([nan, nan], [nan, nan]),
            *([nan, nan], [0.3, nan]),  # one completion that is scored has no other to be better than
            *([0.0, nan], [nan, 0.5]),
        ]
    )
    assert living_groups(rewards, torch.tensor([1.0, 1.0]), 2).tolist() == [False, True, False, False, True]
    assert living_groups(rewards[2:4], torch.tensor([1.0, 0.0]), 2).tolist() == [True]
    assert living_groups(torch.full((7, 1), 0.7), torch.tensor([1.0]), 7).tolist() == [False]


def test_each_process_fills_its_own_places_as_far_as_it_has_found_groups() -> None:
    living = torch.tensor([[True, False, False], [False, False, False]])
    further = torch.tensor([[True, True, True], [False, True, False]])
    places = places_to_fill(living, further)
    assert places.tolist() == [[False, True, True], [True, False, False]]
    assert places_to_fill(living | places, further[:, :2]).tolist() == [[False] * 3, [False, True, False]]


def test_ratios_and_prompts_are_padded_as_trl_pads() -> None:
    """A mask of tools is 1 where there is no token, and a ratio of 0 would have no logarithm."""
    rows = ["a", "b", "c", "d"]
    batch = {"advantages": torch.zeros(4), "prompt_ids": torch.tensor([[1, 2]] * 4), "encoded_rows": rows}
    others = {"advantages": torch.ones(4), "prompt_ids": torch.tensor([[3]] * 4), "encoded_rows": list("efgh")}
    for values, width, ratio in ((batch, 1, 0.5), (others, 2, 0.25)):
        values["importance_sampling_ratio"] = torch.full((4, width), ratio)
        values |= {"tool_mask": torch.zeros(4, width), "count": torch.tensor(width)}
    found = replace_groups(batch, torch.tensor([False, True]), others, torch.tensor([False, True]), pad_token_id=9)
    assert found["encoded_rows"] == ["a", "b", "g", "h"] and rows == ["a", "b", "c", "d"]
    assert found["advantages"].tolist() == [0, 0, 1, 1] and found["count"] == 1
    assert found["prompt_ids"].tolist() == [[1, 2], [1, 2], [9, 3], [9, 3]]
    assert found["importance_sampling_ratio"].tolist() == [[0.5, 1], [0.5, 1], [0.25, 0.25], [0.25, 0.25]]
    assert found["tool_mask"].tolist() == [[0, 1], [0, 1], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    "options, match",
    [
        ({"dynamic_sampling_rounds": -1}, "dynamic_sampling_rounds=-1: give a number of rounds"),
        ({"scale_rewards": "batch"}, "does not work with scale_rewards 'batch'"),
        (
            {"multi_objective_aggregation": "normalize_then_sum"},
            "with multi_objective_aggregation 'normalize_then_sum'",
        ),
        ({"use_vllm": True, "vllm_mode": "server", "one_step_off_policy": True}, "with one_step_off_policy True"),
        ({"enumerate_answers": True, "beta": 0.0, "scale_rewards": "none"}, "with enumerate_answers True"),
        ({"per_device_train_batch_size": 3}, "x steps_per_generation is 3: .* a multiple of num_generations, 2"),
    ],
)
def test_what_does_not_go_together_is_told(
    options: dict[str, Any], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AuroraGRPOConfig, "world_size", 2)
    given = {"dynamic_sampling_rounds": 2, "per_device_train_batch_size": 4, "num_generations": 2, **options}
    with pytest.raises(ValueError, match=match):
        AuroraGRPOConfig(output_dir="unused", report_to="none", use_cpu=True, bf16=False, **given)


def test_batches_of_one_kind_are_not_filled_with_another() -> None:
    sets = [MixedSet("clips", 4), MixedSet("sounds", 4, has_frames=False)]
    with pytest.raises(ValueError, match="some data sets have frames and others have none"):
        RefillingTrainer(args=SimpleNamespace(dynamic_sampling_rounds=1), sets=sets)
