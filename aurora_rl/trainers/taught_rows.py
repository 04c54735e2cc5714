"""Rows of a micro-batch that teach something: those without an advantage are left out of its training pass.

All terms of the policy loss are products with the advantage, in every `loss_type`. In a group of equal rewards it is
0, and so is the gradient where nothing else is learned from a completion. The loss is still a mean over all rows: those
that are left out stand in it with the ratio of 1, which makes their term 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from trl import GRPOTrainer

Row = TypeVar("Row")


@dataclasses.dataclass(frozen=True)
class TaughtRows:
    """The rows that a training pass is over, and what the loss reads of the others.

    Attributes:
        rows: (N,) their places among the B rows of the micro-batch; at least one, so that all processes make a pass.
        mask: (B, C) completion tokens of the micro-batch.
        old_logps: (B, C) log-probabilities before the step; None where TRL takes those of the pass itself.
    """

    rows: Tensor
    mask: Tensor
    old_logps: Tensor | None = None

    @property
    def share_left_out(self) -> float:
        """Share of the rows that the pass is not over."""
        return 1 - len(self.rows) / len(self.mask)

    def select(
        self, input_ids: Tensor, attention_mask: Tensor, rows: Sequence[Row]
    ) -> tuple[Tensor, Tensor, list[Row]]:
        """Select the rows of a micro-batch, whose (B, L) columns stay as they are."""
        return input_ids[self.rows], attention_mask[self.rows], [rows[row] for row in self.rows.tolist()]

    def all_rows(self, outputs: Any) -> Any:
        """Give the outputs of a pass `log_probs` and `entropy` (B, C) of all rows.

        The others have a ratio of 1, and the mean entropy of those that the pass was over, which is what is logged.
        """
        width, mask = self.mask.size(1), self.mask[self.rows]
        logps, entropy = outputs.log_probs[:, -width:], outputs.entropy[:, -width:]
        others = torch.zeros_like(self.mask, dtype=logps.dtype) if self.old_logps is None else self.old_logps
        mean = (entropy * mask).sum() / mask.sum().clamp(min=1)
        outputs.log_probs = others.to(logps.dtype).index_copy(0, self.rows, logps)
        outputs.entropy = mean.expand(self.mask.shape).index_copy(0, self.rows, entropy)
        return outputs


def taught_rows(inputs: Mapping[str, Any]) -> TaughtRows | None:
    """Find the rows of a micro-batch that have an advantage; None if all have one.

    Args:
        inputs: TRL's micro-batch, with `advantages` (B,) or (B, C), and `completion_mask` (B, C). If no row has an
            advantage, the row of the shortest completion stays.
    """
    advantages, mask = inputs["advantages"], inputs["completion_mask"]
    has_one = (advantages if advantages.dim() > 1 else advantages[:, None]).ne(0).any(1)
    if has_one.all():
        return None
    rows = has_one.nonzero()[:, 0] if has_one.any() else mask.sum(1).argmin()[None]
    return TaughtRows(rows, mask, inputs.get("old_per_token_logps"))


def only_advantages_teach(trainer: GRPOTrainer) -> bool:
    """Tell whether a completion without an advantage gives no gradient.

    KL term, entropy bonus, router loss, the loss of a head and the exact objective teach from every completion, and
    `top_entropy_quantile` compares the tokens of all.
    """
    trains_head = trainer.encode.task.head is not None and trainer.args.mask_loss_on != "off"
    is_exact = trainer.args.enumerate_answers
    others = (trainer.beta, trainer.aux_loss_enabled, trainer._entropy_bonus_enabled, trains_head, is_exact)
    return not any(others) and trainer.top_entropy_quantile >= 1.0


class TaughtRowsTrainer(GRPOTrainer):
    """TRL's GRPOTrainer, whose training passes are over the rows that teach something."""

    _mode: str

    def taught_rows(self, inputs: Mapping[str, Any]) -> TaughtRows | None:
        """Find the rows that a micro-batch's training pass is over, and log the share of the others; None for all."""
        if not (self.model.training and self.args.skip_zero_advantages and only_advantages_teach(self)):
            return None
        found = taught_rows(inputs)
        share = 0.0 if found is None else found.share_left_out
        self.log_mean("skipped_completions", torch.tensor(share, device=self.accelerator.device))
        return found

    def log_mean(self, name: str, value: Tensor) -> None:
        """Log a number's mean over the processes."""
        self._metrics[self._mode][name].append(self.accelerator.gather(value).mean().item())
