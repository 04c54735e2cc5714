"""Dynamic sampling (DAPO, arXiv 2503.14476): groups that teach nothing give their places to groups of further prompts.

_generate_and_score_completions   the generation batch
  refilled                        while some group is dead, its rewards all alike, and for so many rounds at most:
    _further_groups                 a prompt for each dead group of the process that has most, sampled and rewarded
    replace_groups                  living groups of them in the places of dead ones

A group lies on one process and gives its place to a group of that process, so that no media travel. TRL gathers the
rewards: all processes know of all groups, and come to the same number of rounds and of prompts without asking.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from aurora_rl.data.mixing import MixedSet
from aurora_rl.data.sample import AVSample
from aurora_rl.models.encoding import EncodedSample
from aurora_rl.trainers.head_loss import masks_per_forward
from aurora_rl.trainers.off_policy import OffPolicyTrainer
from aurora_rl.trainers.shared_towers import SharedTowersTrainer


class RefillingTrainer(SharedTowersTrainer, OffPolicyTrainer):
    """A GRPO trainer that refills its generation batches, see `AuroraGRPOConfig.dynamic_sampling_rounds`.

    Raises:
        ValueError: if some data sets of the run have frames and others have none.
    """

    _roll_out: Callable[[list[dict[str, Any]], list[EncodedSample]], dict[str, Any]]
    #: (P, N) bool, which of the groups that were rewarded last live, N on each of P processes.
    _living: Tensor

    def __init__(self, *args: Any, sets: Sequence[MixedSet] = (), **kwargs: Any) -> None:
        if kwargs["args"].dynamic_sampling_rounds and len({each.has_frames for each in sets}) > 1:
            raise ValueError(
                "dynamic_sampling_rounds is set, but some data sets have frames and others have none: further prompts "
                "would bring both into one batch. Leave it out, or train on one kind"
            )
        super().__init__(*args, sets=sets, **kwargs)

    @property
    def _refills(self) -> bool:
        return self.model.training and self.args.dynamic_sampling_rounds > 0

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> Tensor:
        """Find out which groups live, too."""
        rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._refills:
            living = living_groups(rewards_per_func.cpu(), self.reward_weights.cpu(), self.num_generations)
            self._living = living.view(self.accelerator.num_processes, -1)
        return rewards_per_func

    def refilled(self, output: dict[str, Any]) -> dict[str, Any]:
        """Return a generation batch with living groups in the places of dead ones, and log what that has cost.

        Dead groups stay where all rounds have found too few living ones.

        Args:
            output: the batch, with all that is trained on, `encoded_rows` too.
        """
        if not self._refills:
            return output
        args, process, indices = self.args, self.accelerator.process_index, self._further_indices()
        living, sizes = self._living, list[int]()
        cost: dict[str, float] = {"dead_before": _dead_share(living)}
        while len(sizes) < args.dynamic_sampling_rounds and (size := int((~living).sum(1).max())):
            further = self._further_groups(list(itertools.islice(indices, size * len(living))))
            places = places_to_fill(living, self._living)
            pad_token_id = self._tokenizer.pad_token_id
            output = replace_groups(output, places[process], further, self._living[process], pad_token_id)
            living = living | places
            sizes.append(size)
        if sizes:
            output = self._recounted(output)
        cost |= {"dead_after": _dead_share(living), "rounds": len(sizes)}
        cost["sampled_per_trained"] = 1 + sum(sizes) / living.size(1)
        for name, value in cost.items():
            self._metrics["train"][f"dynamic_sampling/{name}"].append(value)
        return output

    def _further_indices(self) -> Iterator[int]:
        """Yield rows of the data set without end; they follow from the seed and the step, so that resuming is exact.

        A shuffled run has an order of its own for each step. A run in order, such as a curriculum's, goes on behind the
        next batch, whose media are being read.
        """
        assert self._order is not None
        args, step = self.args, self.state.global_step
        order = self._order.rows(-1 - step if self.shuffle_dataset else self._epoch())  # no epoch has a negative number
        batches = (self._step - self._first_step) % args.gradient_accumulation_steps // self._generate_every
        done = round((self.state.epoch or 0) % 1 * len(order))
        start = done + (2 + batches) * args.generation_batch_size // self.num_generations
        for place in itertools.count(start):
            yield order[place % len(order)]

    def _further_groups(self, indices: Sequence[int]) -> dict[str, Any]:
        """Roll out this process's share of further prompts, of which nothing is logged.

        Means over prompts that take the places of others would not tell what the policy earns.
        """
        size = len(indices) // self.accelerator.num_processes
        own = indices[self.accelerator.process_index * size :][:size]
        inputs = [self.train_dataset[index] for index in own for _ in range(self.num_generations)]
        if (towers := self._tower_outputs["train"]) is not None:
            towers.reopen()
        metrics, self._metrics["train"] = self._metrics["train"], collections.defaultdict(list)
        try:
            return self._roll_out(inputs, self._ahead.take([AVSample.from_row(row) for row in inputs]))
        finally:
            metrics["num_tokens"] = [self.state.num_input_tokens_seen]
            self._metrics["train"] = metrics

    def _recounted(self, output: dict[str, Any]) -> dict[str, Any]:
        """Count tokens and masks of a batch anew, and drop what towers have computed for clips that have left it."""
        if (towers := self._tower_outputs["train"]) is not None:
            towers.keep_only(row.prompt.features for row in output["encoded_rows"])
        tokens = output["completion_mask"] * output.get("tool_mask", 1)
        output["num_items_in_batch"] = self.accelerator.gather(tokens.sum()).sum()
        if "mask_weights" in output:
            weights = output["mask_weights"]
            output["masks_per_forward"] = masks_per_forward(self.accelerator, weights, self.args.steps_per_generation)
        return output


def _dead_share(living: Tensor) -> float:
    return 1 - living.float().mean().item()


def living_groups(rewards_per_func: Tensor, weights: Tensor, num_generations: int) -> Tensor:
    """Tell which groups live: their completions' rewards differ by more than rounding, so that they have advantages.

    >>> living_groups(torch.tensor([[1.0], [1.0], [0.0], [1.0]]), torch.tensor([1.0]), 2)
    tensor([False,  True])

    Args:
        rewards_per_func: (B, number of reward functions); NaN where one does not apply.
        weights: (number of reward functions,) weights of the rewards.
        num_generations: G; the completions of a group are neighbours.

    Returns:
        (B / G,) bool; a completion that no function applies to does not count.
    """
    rewards = (rewards_per_func * weights).nansum(1)
    unscored = rewards_per_func.isnan().all(1)
    highest = rewards.masked_fill(unscored, -torch.inf).view(-1, num_generations).amax(1)
    lowest = rewards.masked_fill(unscored, torch.inf).view(-1, num_generations).amin(1)
    return (highest > lowest) & ~highest.isclose(lowest)


def places_to_fill(living: Tensor, further: Tensor) -> Tensor:
    """Choose the dead groups that give their places to further groups of their process: its first ones.

    Args:
        living: (P, N) bool, which groups of each process live.
        further: (P, M) bool, which of its further groups live.

    Returns:
        (P, N) bool.
    """
    return ~living & ((~living).cumsum(1) <= further.sum(1, keepdim=True))


def replace_groups(
    batch: Mapping[str, Any], places: Tensor, others: Mapping[str, Any], living: Tensor, pad_token_id: int
) -> dict[str, Any]:
    """Put the first living groups of another batch into places of a batch; the rows that stay keep all they have.

    Args:
        batch: tensors and lists of one entry a row, B in all; scalars stay as they are.
        places: (N,) bool, which of the N groups give their places.
        others: another batch, with the same names.
        living: (M,) bool, which of its M groups live; as many as places at least.
        pad_token_id: id of the padding.
    """
    num_generations = len(batch["advantages"]) // len(places)
    into = places.repeat_interleave(num_generations).nonzero()[:, 0]
    rows = living.repeat_interleave(num_generations).nonzero()[: len(into), 0]

    def replaced(name: str, values: Any) -> Any:
        if isinstance(values, list):
            taken = dict(zip(into.tolist(), rows.tolist(), strict=True))
            return [others[name][taken[row]] if row in taken else value for row, value in enumerate(values)]
        if values.dim() == 0:
            return values
        device = values.device
        values, further = _equally_wide(name, values, others[name], pad_token_id)
        return values.index_copy(0, into.to(device), further[rows.to(device)])

    return {name: replaced(name, values) for name, values in batch.items()}


def _equally_wide(name: str, first: Tensor, second: Tensor, pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Pad the narrower of two tensors of one name as TRL pads: a ratio where there is no token is 1."""
    if first.dim() == 1:
        return first, second
    width = max(first.size(1), second.size(1))
    ones = dict.fromkeys(("tool_mask", "importance_sampling_ratio"), 1)
    value = {"prompt_ids": pad_token_id, "completion_ids": pad_token_id, **ones}.get(name, 0)

    def padded(tensor: Tensor) -> Tensor:
        missing = width - tensor.size(1)
        return functional.pad(tensor, (missing, 0) if name.startswith("prompt_") else (0, missing), value=value)

    return padded(first), padded(second)
