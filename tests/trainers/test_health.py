"""Warnings about a run that goes wrong quietly: each once, and none about a run that goes well."""

import inspect
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from trl.trainer import grpo_trainer

from aurora_rl.trainers.health import IMPORTANCE_RATIO, LOGP_DIFFERENCE, RolloutHealthCallback

GOOD = {"reward": 0.5, "frac_reward_zero_std": 0.3, "completions/clipped_ratio": 0.0, "chain/see": 0.9}


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture) -> Any:
    """Warnings about a run that logs these dictionaries, `resumed_from` being those of the run that it resumes."""

    def run(
        logs: list[dict[str, Any]],
        *,
        resumed_from: list[dict[str, Any]] = (),
        is_main: bool = True,
        mode: str = "token_truncate",
    ) -> list[str]:
        callback = RolloutHealthCallback(window=2)
        args = SimpleNamespace(max_completion_length=72, vllm_importance_sampling_mode=mode)
        state = SimpleNamespace(is_world_process_zero=is_main, log_history=list(resumed_from))
        callback.on_train_begin(args, state, None)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="aurora_rl"):
            for log in logs:
                callback.on_log(args, state, None, logs=log)
        return [record.getMessage() for record in caplog.records]

    return run


def test_a_good_run_is_left_in_peace(warnings_of: Any) -> None:
    assert warnings_of([GOOD] * 6) == []


def test_logs_of_evaluation_and_of_the_end_are_not_read(warnings_of: Any) -> None:
    assert warnings_of([{"eval_reward": 0.1, "eval_frac_reward_zero_std": 1.0}, {"train_runtime": 3.0}]) == []


def test_groups_without_variance_are_named_once(warnings_of: Any) -> None:
    [message] = warnings_of([{**GOOD, "frac_reward_zero_std": 0.9}] * 4)
    assert message.startswith("90 % of the groups have no reward variance")


def test_clipped_completions_are_named_once_with_the_limit(warnings_of: Any) -> None:
    [message] = warnings_of([{**GOOD, "completions/clipped_ratio": 0.25}] * 4)
    assert message.startswith("25 % of the completions are cut at max_completion_length=72")


def test_a_problem_that_has_passed_is_named_again_when_it_returns(warnings_of: Any) -> None:
    bad = {**GOOD, "completions/clipped_ratio": 0.5}
    assert len(warnings_of([bad, bad, GOOD, bad])) == 2


def falling_chain(rewards: list[float]) -> list[dict[str, Any]]:
    return [{**GOOD, "reward": r, "chain/see": s} for r, s in zip(rewards, [0.9, 0.9, 0.7, 0.5, 0.5, 0.5], strict=True)]


def test_a_chain_that_falls_while_the_reward_rises_is_named_once(warnings_of: Any) -> None:
    [message] = warnings_of(falling_chain([0.2, 0.2, 0.5, 0.6, 0.7, 0.8]))
    # The last two logs against the first two: 0.6 against 0.9, and 0.55 against 0.2.
    assert message.startswith("chain/see fell by 0.30 while the reward rose by 0.35")


def test_a_chain_that_falls_with_the_reward_is_another_matter(warnings_of: Any) -> None:
    assert warnings_of(falling_chain([0.5, 0.5, 0.4, 0.3, 0.3, 0.2])) == []


def test_a_chain_is_not_judged_before_a_whole_window_has_been_seen(warnings_of: Any) -> None:
    assert warnings_of(falling_chain([0.2, 0.2, 0.5, 0.6, 0.7, 0.8])[1:3]) == []


def test_a_reward_that_watches_the_chain_is_watched_too(warnings_of: Any) -> None:
    name = "rewards/reasoning_consistency_reward/mean"
    logs = [{"reward": 0.1 * i, name: 1.0 - 0.1 * i} for i in range(4)]
    [message] = warnings_of(logs)
    assert message.startswith(f"{name} fell by")


def test_a_resumed_run_is_compared_with_its_own_beginning(warnings_of: Any) -> None:
    history = falling_chain([0.2, 0.2, 0.5, 0.6, 0.7, 0.8])
    assert warnings_of(history[3:]) == []
    [message] = warnings_of(history[3:], resumed_from=history[:3])
    assert message.startswith("chain/see fell by 0.30")


def sampler(difference: float, ratio: float) -> dict[str, Any]:
    """A log of a run whose completions vLLM writes."""
    return {**GOOD, LOGP_DIFFERENCE: difference, IMPORTANCE_RATIO: ratio}


def test_what_is_watched_of_the_sampler_is_what_trl_logs() -> None:
    source = inspect.getsource(grpo_trainer)
    assert f'"{LOGP_DIFFERENCE}"' in source
    assert f'"{IMPORTANCE_RATIO}"' in source


def test_a_sampler_that_follows_the_policy_is_left_in_peace(warnings_of: Any) -> None:
    assert warnings_of([sampler(0.0, 1.0), sampler(0.02, 1.01), sampler(0.1, 0.95)]) == []


@pytest.mark.parametrize("difference", [0.3, float("nan")])
def test_a_sampler_with_other_log_probabilities_is_named_once(warnings_of: Any, difference: float) -> None:
    [message] = warnings_of([sampler(difference, 1.0)] * 3)
    assert message.startswith(f"vLLM's log-probability of a token differs from the policy's by {difference} on average")


@pytest.mark.parametrize("ratio", [0.8, 1.2, float("nan")])
def test_ratios_that_do_not_average_one_are_named_with_their_mode(warnings_of: Any, ratio: float) -> None:
    [message] = warnings_of([sampler(0.02, ratio)] * 3)
    assert message.startswith(f"the importance ratios between the policy and vLLM average {ratio}, where 1 is expected")
    assert "token_truncate: many tokens are corrected" in message
    [message] = warnings_of([sampler(0.02, ratio)] * 3, mode="sequence_mask")
    assert message.endswith("Set it to token_truncate")


def test_one_process_of_many_speaks(warnings_of: Any) -> None:
    assert warnings_of([{**GOOD, "frac_reward_zero_std": 1.0}], is_main=False) == []
