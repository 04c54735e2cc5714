"""A training pass without the rows that have no advantage takes the step that all rows take."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.taught_rows import TaughtRows, only_advantages_teach, taught_rows
from tests.trainers.test_prompt_sharing import LOSSES, Recorder, count_tokens, loss_and_gradients, worst_difference

MakeGRPO = Callable[..., AuroraGRPOTrainer]
Rollout = Callable[..., dict[str, Any]]
#: Three groups of four, from whose completions nothing but the advantage teaches.
STEP = {"per_device_train_batch_size": 12, "num_generations": 4, "mask_loss_on": "off", "beta": 0.0, "max_steps": 1}


def alternating(completions: list, **_: Any) -> list[float]:
    """Rewards of which each group of four but the first has two."""
    return [float(index >= 4 and index % 2) for index in range(len(completions))]


def step(make_grpo: MakeGRPO, reward: Any, **options: Any) -> tuple[dict[str, torch.Tensor], list[int], dict[str, Any]]:
    """Gradients of one step, the tokens of its passes, and its log."""
    torch.manual_seed(0)
    recorder = Recorder()
    trainer = make_grpo(rewards=[reward], callbacks=[recorder], max_grad_norm=0.0, **{**STEP, **options})
    tokens = count_tokens(trainer)
    trainer.train()
    return recorder.steps[0], tokens, trainer.state.log_history[0]


def test_a_step_without_a_group_of_equal_rewards_is_the_step_with_it(make_grpo: MakeGRPO) -> None:
    """In two micro-batches, one of which may have more rows to leave out than the other."""
    options = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2, "share_prompts": False}
    theirs, all_tokens, all_logs = step(make_grpo, alternating, skip_zero_advantages=False, **options)
    ours, tokens, logs = step(make_grpo, alternating, **options)
    assert worst_difference(ours, theirs) < 1e-5
    assert len(tokens) == len(all_tokens) == 2 and sum(all_tokens) * 8 == sum(tokens) * 12
    assert logs["skipped_completions"] == pytest.approx(1 / 3) and "skipped_completions" not in all_logs
    same = ("loss", "reward", "clip_ratio/region_mean", "frac_reward_zero_std")
    assert {name: logs[name] for name in same} == pytest.approx({name: all_logs[name] for name in same}, abs=1e-6)


@pytest.fixture
def trainer(make_grpo: MakeGRPO) -> AuroraGRPOTrainer:
    return make_grpo(rewards=[alternating], num_iterations=2, share_prompts=True, **STEP)


@pytest.fixture
def inputs(trainer: AuroraGRPOTrainer, rollout: Rollout) -> dict[str, Any]:
    """A generation batch, with old log-probabilities from which the policy has moved."""
    inputs = rollout(trainer, 3)
    shift = 0.1 * torch.randn(inputs["completion_ids"].shape)
    return inputs | {"old_per_token_logps": inputs["old_per_token_logps"] + shift}


def test_each_form_of_loss_has_the_same_gradients(
    trainer: AuroraGRPOTrainer, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = taught_rows(inputs)
    assert found is not None and found.rows.tolist() == [*range(4, 12)]
    for name in ("dapo", "cispo", "sapo", "vespo", "luspo"):
        with monkeypatch.context() as patch:
            for attribute, value in LOSSES[name].items():
                patch.setattr(trainer, attribute, value)
            patch.setattr(trainer.args, "skip_zero_advantages", False)
            plain, theirs = loss_and_gradients(trainer, inputs, is_on=True)
            patch.setattr(trainer.args, "skip_zero_advantages", True)
            skipped, ours = loss_and_gradients(trainer, inputs, is_on=True)
        torch.testing.assert_close(skipped, plain, atol=1e-6, rtol=1e-6, msg=name)
        assert worst_difference(ours, theirs) < 1e-5, name


def test_without_any_advantage_one_row_passes_and_has_no_gradient(
    trainer: AuroraGRPOTrainer, inputs: dict[str, Any]
) -> None:
    """Processes make the same passes, whatever their rows have earned."""
    tokens = count_tokens(trainer)
    equal = inputs | {"advantages": torch.zeros_like(inputs["advantages"])}
    loss, gradients = loss_and_gradients(trainer, equal, is_on=True)
    lengths = inputs["completion_mask"].sum(1)
    prompt = inputs["prompt_mask"][lengths.argmin()].sum()
    assert tokens == [prompt + lengths.min()]
    assert loss == 0 and gradients and not any(gradient.any() for gradient in gradients.values())


def test_rows_stay_where_something_else_teaches(trainer: AuroraGRPOTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only_advantages_teach(trainer)
    others = {"beta": 0.04, "aux_loss_enabled": True, "_entropy_bonus_enabled": True, "top_entropy_quantile": 0.2}
    for target, name, value in [(trainer, *item) for item in others.items()] + [(trainer.args, "mask_loss_on", "all")]:
        with monkeypatch.context() as patch:
            patch.setattr(target, name, value)
            assert not only_advantages_teach(trainer), name


def test_the_rows_without_an_advantage_are_found() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]])

    def found(advantages: Any) -> TaughtRows | None:
        return taught_rows({"advantages": torch.tensor(advantages), "completion_mask": mask})

    assert found([0.5, -0.5, 1e-9]) is None
    assert found([0.0, -0.5, 0.0]).rows.tolist() == [1]
    assert found([[0.0] * 3, [0.0] * 3, [0.0, 0.0, 1.0]]).rows.tolist() == [2]
    nothing = found([0.0, -0.0, 0.0])
    assert nothing.rows.tolist() == [1] and nothing.share_left_out == pytest.approx(2 / 3)
