"""Warnings about silent failures of GRPO: no variance, cut completions, a chain that gets worse, a stale sampler."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

#: TRL's metrics of the difference between vLLM's log-probabilities and the policy's, and of the correcting ratios.
LOGP_DIFFERENCE = "sampling/sampling_logp_difference/mean"
IMPORTANCE_RATIO = "sampling/importance_sampling_ratio/mean"

#: Metrics that say how good the chain is, whatever the final answer; those that a run logs are watched.
CHAIN_METRICS = ("chain/see", "chain/hear", "rewards/reasoning_consistency_reward/mean")


class RolloutHealthCallback(TrainerCallback):
    """Reads the training log and warns once of each problem, and again if it returns.

    Rewards on the final answer alone let the chain of thought get worse while the score rises, so the chain's metrics
    of the last `window` logs are compared with those of the first.

    Args:
        max_zero_std: share of groups without reward variance above which GRPO has little to learn from.
        max_clipped: share of completions cut at the length limit above which the answers are lost.
        chain_drop: fall of a chain metric that is worth a warning while the reward rises.
        max_logp_difference: nats by which a token's log-probability may differ between vLLM and the policy, on
            average; rounding in bf16 should stay far below, other weights do not.
        max_ratio_error: distance of the mean importance ratio from 1 that is worth a warning: ratios of a sampler that
            follows the policy average 1.
        window: number of logs averaged at either end.
    """

    _first: dict[str, list[float]]
    _last: dict[str, deque[float]]
    _warned: set[str]

    def __init__(
        self,
        *,
        max_zero_std: float = 0.8,
        max_clipped: float = 0.2,
        chain_drop: float = 0.1,
        max_logp_difference: float = 0.1,
        max_ratio_error: float = 0.1,
        window: int = 10,
    ) -> None:
        self.max_zero_std = max_zero_std
        self.max_clipped = max_clipped
        self.chain_drop = chain_drop
        self.max_logp_difference = max_logp_difference
        self.max_ratio_error = max_ratio_error
        self.window = window

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the log of the run's beginning from its state, so that a resumed run is compared with it."""
        self._first, self._last, self._warned = {}, {}, set()
        for logs in state.log_history:
            self._remember(logs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or "reward" not in logs:
            return
        self._check(
            "variance",
            (logs.get("frac_reward_zero_std") or 0.0) > self.max_zero_std,
            f"{_percent(logs, 'frac_reward_zero_std')} of the groups have no reward variance and teach nothing: mix "
            "harder or easier prompts, raise the temperature or num_generations",
        )
        self._check(
            "clipped",
            (logs.get("completions/clipped_ratio") or 0.0) > self.max_clipped,
            f"{_percent(logs, 'completions/clipped_ratio')} of the completions are cut at max_completion_length="
            f"{getattr(args, 'max_completion_length', None)}, before their answer: raise it",
        )
        self._check(
            "calls",
            logs.get("tools/call_frequency") == 0.0,
            "no rollout calls a tool: policies stop calling unless a reward pays for what a call finds out",
        )
        self._check_sampler(args, logs)
        self._remember(logs)
        self._check_chain()

    def _check_sampler(self, args: TrainingArguments, logs: Mapping[str, Any]) -> None:
        """Warn if vLLM does not sample from the policy; runs without vLLM do not log these metrics."""
        difference, ratio = logs.get(LOGP_DIFFERENCE), logs.get(IMPORTANCE_RATIO)
        self._check(
            LOGP_DIFFERENCE,
            difference is not None and not difference <= self.max_logp_difference,  # NaN is worth a warning too
            f"vLLM's log-probability of a token differs from the policy's by {difference} on average, more than "
            f"{self.max_logp_difference:g}: {_sampler_remedy(args)} (docs/vllm.md)",
        )
        self._check(
            IMPORTANCE_RATIO,
            ratio is not None and not abs(ratio - 1.0) <= self.max_ratio_error,
            f"the importance ratios between the policy and vLLM average {ratio}, where 1 is expected, by "
            f"vllm_importance_sampling_mode={getattr(args, 'vllm_importance_sampling_mode', None)}: "
            f"{_ratio_remedy(args)}",
        )

    def _remember(self, logs: Mapping[str, Any]) -> None:
        for name in ("reward", *CHAIN_METRICS):
            if isinstance(value := logs.get(name), float):
                if len(self._first.setdefault(name, [])) < self.window:
                    self._first[name].append(value)
                self._last.setdefault(name, deque(maxlen=self.window)).append(value)

    def _check_chain(self) -> None:
        for name in CHAIN_METRICS:
            change = self._change(name)
            self._check(
                name,
                change < -self.chain_drop and self._change("reward") > 0,
                f"{name} fell by {-change:.2f} while the reward rose by {self._change('reward'):.2f}: the chain of "
                "thought is getting worse behind a better answer. Weight the reasoning-consistency reward, or raise "
                "beta",
            )

    def _change(self, name: str) -> float:
        first, last = self._first.get(name, []), self._last.get(name, ())
        if len(first) < self.window:
            return 0.0
        return sum(last) / len(last) - sum(first) / len(first)

    def _check(self, problem: str, is_bad: bool, message: str) -> None:
        if is_bad and problem not in self._warned:
            logger.warning(message)
            self._warned.add(problem)
        elif not is_bad:
            self._warned.discard(problem)


def _sampler_remedy(args: TrainingArguments) -> str:
    if getattr(args, "one_step_off_policy", False):
        return "a step changes more than a policy one batch behind can follow. Lower learning_rate"
    return (
        "it samples from other weights, or from another prompt or temperature. Look at the weight sync and at both "
        "sides' dtype"
    )


def _ratio_remedy(args: TrainingArguments) -> str:
    if str(getattr(args, "vllm_importance_sampling_mode", None)).startswith("sequence"):
        return (
            "a ratio of a whole completion multiplies the rounding noise of all its tokens, and completions beyond the "
            "limits are cut off or dropped. Set it to token_truncate"
        )
    return "many tokens are corrected or dropped, so that vLLM has other weights than the policy, or other dtypes"


def _percent(logs: Mapping[str, Any], name: str) -> str:
    return f"{100 * (logs.get(name) or 0.0):.0f} %"
