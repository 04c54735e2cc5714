"""What a completion owes to the clip's sound, or to its frames: columns of rewards, at the price of a scoring pass.

The completions are scored as they are, beside the prompt with another clip's sound (`models.other_media`):

    g = 1/T sum_t [ log p(y_t | y_<t, clip) - log p(y_t | y_<t, clip with the other sound) ]     nats a token
    listening_gain = 1 / (1 + exp(-g / 0.1))

A completion that the sound has no part in has g = 0, whatever it says: the baseline depends on the completion. Nothing
of it is differentiated: like any reward, it is a number of the policy that sampled.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.grounding import sharing_tower_outputs
from aurora_rl.models.other_media import SENSES, Sense, exchange, perceives, towers_of
from aurora_rl.rewards import names_column
from aurora_rl.trainers.grounded_rollouts import ForwardPasses, RolloutBatch
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from aurora_rl.trainers.shared_towers import SharedTowersTrainer

#: Gain in nats a token that a column tells as 1 / (1 + 1/e) = 0.731. A chain has some 20 to 60 tokens, of which few
#: depend on the sound: one word out of 20 that the sound makes e^2 times as likely gains 0.1.
SCALE = 0.1


def squashed_gain(log_probs: Sequence[float], others: Sequence[float]) -> float:
    """Compute a completion's column from the log-probabilities of its tokens, see the module.

    Example: two tokens of -0.5 and -1.0 beside the clip, -0.6 and -1.3 beside another sound, gain (0.1 + 0.3) / 2 = 0.2
    nats a token: 1 / (1 + exp(-2)) = 0.881.

    >>> round(squashed_gain([-0.5, -1.0], [-0.6, -1.3]), 3), squashed_gain([-0.5], [-0.5]), squashed_gain([], [])
    (0.881, 0.5, 0.5)

    Args:
        log_probs: T log-probabilities beside the clip.
        others: T log-probabilities beside the prompt that has another clip's part.

    Returns:
        A number in [0, 1]: exactly 0.5 where nothing is gained, as by a completion without a token; above it where the
        clip's own part makes the completion likelier. A sigmoid, for it tells losses from none, keeps differences of
        small gains, and has its ends at half a nat a token, beyond which there is little to be earned.
    """
    if not log_probs:
        return 0.5
    gain = sum(own - other for own, other in zip(log_probs, others, strict=True)) / len(log_probs)
    return 0.5 * (1 + math.tanh(gain / SCALE / 2))  # the sigmoid, without overflow


def asked_senses(encode: SampleEncoder, reward_funcs: Sequence[Callable[..., Any]]) -> tuple[Sense, ...]:
    """Return the senses whose columns some reward function names.

    Raises:
        ValueError: naming a function that asks for a sense that the model lacks.
    """
    asked = []
    for sense in SENSES:
        names = [func.__name__ for func in reward_funcs if names_column(func, sense.column)]
        if names and not perceives(encode, sense):
            raise ValueError(
                f"reward function {names[0]!r} reads {sense.column}, but {type(encode.family).__name__} has no "
                f"{sense.lack}, or drop_sound leaves them none: drop the reward, or choose a model that has them"
            )
        asked += [sense] if names else []
    return tuple(asked)


class CounterfactualTrainer(SharedTowersTrainer):
    """A GRPO trainer that fills in the rewards' columns `listening_gain` and `looking_gain`, where a function asks."""

    args: AuroraGRPOConfig
    encode: SampleEncoder
    _passes: ForwardPasses
    _batch: RolloutBatch

    def __init__(
        self, *args: Any, encode: SampleEncoder, reward_funcs: Sequence[Callable[..., Any]], **kwargs: Any
    ) -> None:
        self._asked_senses = asked_senses(encode, reward_funcs)
        if self._asked_senses and kwargs.get("environment_factory"):
            raise ValueError(
                f"rewards that read {self._asked_senses[0].column} do not know which tokens of a completion a tool has "
                "said: drop the reward, or environment_factory"
            )
        super().__init__(*args, encode=encode, reward_funcs=reward_funcs, **kwargs)

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        """Fill the columns in, in the rows that are given, which metrics are computed of as well."""
        if self._asked_senses:
            own = self._own_log_probs(completion_ids_list)
            for sense in self._asked_senses:
                for row, gain in zip(inputs, self._gains(sense, own, completion_ids_list), strict=True):
                    row[sense.column] = gain
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    @property
    def _chunk_size(self) -> int:
        args = self.args
        return args.per_device_train_batch_size if self.model.training else args.per_device_eval_batch_size

    def _own_log_probs(self, completion_ids: list[list[int]]) -> torch.Tensor:
        """Return (B, C) log-probabilities beside the clips themselves: TRL's, where it has scored all tokens."""
        if self.args.masks_share_forward:  # the policy's pass comes first, that of a reference after it
            return self._batch.log_probs[0]
        own = self._passes.log_probs_of(self.model, self._batch.rows, completion_ids, batch_size=self._chunk_size)
        self._batch.all_towers_have_run()
        return own

    def _gains(self, sense: Sense, own: torch.Tensor, completion_ids: list[list[int]]) -> list[float | None]:
        """Score the completions beside another sound, or other frames; None for a row that has none to exchange.

        Such a row goes through the pass as it is: every process runs the same modules.
        """
        rows: Sequence[EncodedSample] = self._batch.rows
        rng = random.Random(
            f"{self.args.seed}/{self.state.global_step}/{self.accelerator.process_index}/{sense.column}"
        )
        exchanged = exchange(self.encode, rows, sense, rng)
        instead = [row if item is None else item.row for row, item in zip(rows, exchanged, strict=True)]
        with sharing_tower_outputs([self.model], towers_of(exchanged, self._batch.tower_outputs)):
            others = self._passes.log_probs_of(self.model, instead, completion_ids, batch_size=self._chunk_size)
        scored = zip(exchanged, completion_ids, own.tolist(), others.tolist(), strict=True)
        return [
            None if item is None else squashed_gain(before[: len(ids)], after[: len(ids)])
            for item, ids, before, after in scored
        ]
