"""The loss of the task's head beside GRPO's policy loss: which completions it is taken of, and its share of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from aurora_rl.models.grounding import freeze_other_heads, install_head_forward, segmentation_model
from aurora_rl.models.head_tokens import find_last_token
from aurora_rl.models.heads import Head
from aurora_rl.models.sharding import gather_at_once
from aurora_rl.trainers.grounded_rollouts import ForwardPasses, RolloutBatch
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig


def prepare_heads(model: nn.Module, name: str | None, *, is_trained: bool) -> None:
    """Let a forward pass of the policy run the task's head, and freeze the heads that no loss reaches.

    Args:
        model: the policy, whose `forward` is TRL's already.
        name: name of the task's head; None without one.
        is_trained: whether that head has a loss.

    Raises:
        ValueError: if the model lacks the head.
    """
    policy = segmentation_model(model)
    if name is not None:
        policy.head(name)
    install_head_forward(policy)
    gather_at_once(model, Head)
    freeze_other_heads(model, name if is_trained else None)


def head_loss_weights(
    passes: ForwardPasses,
    batch: RolloutBatch,
    output: Mapping[str, Any],
    only_right: bool,
    micro_batches: int,
) -> dict[str, torch.Tensor]:
    """Weigh the completions in the head's loss, and count those that a micro-batch has on average.

    The average is over all processes and over the micro-batches of the generation batch, so that the loss does not
    depend on how the batch is split; TRL's `num_items_in_batch` does the same for tokens.

    Args:
        passes: the forward passes, which know task, token and processes.
        batch: the batch with its answers.
        output: TRL's generation batch, with `completion_ids` and `completion_mask`, both (B, L).
        only_right: whether wrong answers have no loss.
        micro_batches: number of micro-batches of the generation batch.

    Returns:
        `mask_weights` (B,) 0 or 1, `masks_per_forward` scalar; nothing for a task without a head.
    """
    if passes.token_id is None:
        return {}
    completion_ids, completion_mask = output["completion_ids"], output["completion_mask"]
    _, weights = find_last_token(
        completion_ids,
        completion_mask,
        passes.token_id,
        num_completion_tokens=completion_ids.size(1),
        in_calls=passes.encode.in_calls,
    )
    weights &= torch.tensor([row.gt_masks is not None for row in batch.rows], device=weights.device)
    if only_right:
        pairs = zip(batch.answers, batch.rows, strict=True)
        is_right = [passes.encode.task_of(row.sample).is_right(answer, row.sample) for answer, row in pairs]
        weights &= torch.tensor(is_right, device=weights.device)
    count = masks_per_forward(passes.accelerator, weights, micro_batches)
    return {"mask_weights": weights.float(), "masks_per_forward": count}


def masks_per_forward(accelerator: Accelerator, weights: torch.Tensor, micro_batches: int) -> torch.Tensor:
    """Count the masks that a micro-batch teaches on average over all processes, 1 at least in all of them together.

    Args:
        accelerator: the trainer's.
        weights: (B,) `mask_weights` of this process.
        micro_batches: number of micro-batches of the generation batch.
    """
    num_masks = accelerator.gather(weights.sum()).sum().clamp(min=1)
    return num_masks / (accelerator.num_processes * micro_batches)


def head_loss(
    passes: ForwardPasses,
    model: nn.Module,
    batch: RolloutBatch,
    args: AuroraGRPOConfig,
    inputs: Mapping[str, torch.Tensor],
) -> torch.Tensor:
    """Return a micro-batch's loss of what the head has predicted in its forward pass.

    The loss of a generation batch is a mean over its rows that have a weight. The mean of the losses of all
    micro-batches, on all processes, is that loss.

    Args:
        passes: the forward passes.
        model: the policy.
        batch: the batch with its predictions.
        args: the configuration.
        inputs: the micro-batch, with what `head_loss_weights` has put there.
    """
    head = passes.head(model)
    [predictions] = batch.predictions
    assert head is not None
    weights, normalizer = inputs["mask_weights"], inputs["masks_per_forward"]
    truths = [None if row.gt_masks is None else row.gt_masks.to(weights.device) for row in batch.rows]
    options = head.loss_options(args)
    return head.loss(predictions.rows, truths, row_weights=weights, normalizer=normalizer, **options).total
