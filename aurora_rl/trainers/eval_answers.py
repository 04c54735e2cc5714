"""Answers of the model that is being trained to a few rows of the evaluation, for people to look at.

The evaluation of GRPO samples completions and decodes their masks anyway: `RolloutAnswers` keeps those of the chosen
rows, without a forward pass of its own. The evaluation of SFT forces the true chain on the model: `GeneratedAnswers`
lets it write its own. Where weights are spread over the processes all of them run the same modules, so every process
must take the answers at the same step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from aurora_rl.data.sample import AVSample
from aurora_rl.inference.predictor import Predictor
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.eval_mode import eval_mode
from aurora_rl.models.heads import MaskHead
from aurora_rl.models.sharding import keep_together
from aurora_rl.trainers.grounded_rollouts import RolloutBatch
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.sft import AuroraSFTTrainer

#: Largest number of tokens that a gallery waits for; chains of thought have about 150, and a model that has not learnt
#: to end one would go on forever.
MAX_TOKENS = 256


@dataclasses.dataclass(frozen=True)
class EvalAnswer:
    """A completion of one row, with what the task's head predicts from it.

    Attributes:
        encoded: the row, with its truth.
        text: the completion, special tokens skipped.
        mask_probs: (F, H, W) float32 probabilities; None without a `[SEG]`, and for a task without masks.
        head_scores: scores of another head's prediction by name, see `Head.scores`.
    """

    encoded: EncodedSample
    text: str
    mask_probs: Tensor | None
    head_scores: Mapping[str, float | None]


class AnswerSource(Protocol):
    """Whatever knows the model's answers to the chosen rows."""

    def take(self) -> list[EvalAnswer]:
        """Return the answers that this process has after an evaluation; together the processes have all of them."""


class RolloutAnswers:
    """Keeps each chosen row's first completion of an evaluation of GRPO.

    Args:
        trainer: the trainer, which is told to hand over the rollouts of its evaluations.
        samples: the chosen rows, which the trainer's evaluation must hold.
    """

    def __init__(self, trainer: AuroraGRPOTrainer, samples: Sequence[AVSample]) -> None:
        self.trainer = trainer
        self._chosen = {sample.key for sample in samples}
        self._kept: dict[str, EvalAnswer] = {}
        trainer.on_eval_rollouts = self._keep

    def take(self) -> list[EvalAnswer]:
        """Return the answers since the last call."""
        kept, self._kept = self._kept, {}
        return list(kept.values())

    def _keep(self, batch: RolloutBatch, texts: Sequence[str]) -> None:
        predictions = [row for together in batch.predictions for row in together.rows]
        has_token = [has for together in batch.predictions for has in together.has_token.tolist()]
        for index, (row, text) in enumerate(zip(batch.rows, texts, strict=True)):
            if row.sample.key in self._chosen and row.sample.key not in self._kept:
                prediction = predictions[index] if predictions and has_token[index] and row.asks_head else None
                self._kept[row.sample.key] = self._answer(row, text, prediction)

    def _answer(self, row: EncodedSample, text: str, prediction: Any) -> EvalAnswer:
        head = self.trainer.head()
        if head is None or head.name == MaskHead.name:
            return EvalAnswer(row, text, None if prediction is None else _on_all_frames(prediction, row), {})
        scores = {} if row.gt_masks is None else head.scores(prediction, row.gt_masks)
        return EvalAnswer(row, text, None, scores)


def _on_all_frames(mask_logits: Tensor, row: EncodedSample) -> Tensor:
    """Return probabilities (F, H, W) of mask logits (A, H, W), zeros for frames without annotation."""
    probs = mask_logits.detach().float().sigmoid().cpu()
    if row.annotated_frames is None or row.frame_inputs is None:
        return probs
    whole = torch.zeros(len(row.frame_inputs), *probs.shape[1:])
    whole[list(row.annotated_frames)] = probs
    return whole


class GeneratedAnswers:
    """Lets the model of an SFT write its own chains, greedily; the processes share the rows.

    Args:
        trainer: the trainer.
        encode: encoder that turns a sample into tensors.
        samples: the chosen rows.
    """

    def __init__(self, trainer: AuroraSFTTrainer, encode: SampleEncoder, samples: Sequence[AVSample]) -> None:
        self.trainer = trainer
        self.encode = encode
        self.samples = list(samples)

    def take(self) -> list[EvalAnswer]:
        """Generate the answers to this process's share of the rows."""
        model, accelerator = self.trainer.model, self.trainer.accelerator
        rows = equal_share(self.samples, accelerator.process_index, accelerator.num_processes)
        encoded = [self.encode(row) for row in rows]  # before autocast, under which sounds would become bf16
        together = keep_together(model, is_fsdp=self.trainer.is_fsdp_enabled)
        with eval_mode(model), accelerator.autocast(), together:
            predictor = Predictor(model, self.encode, max_completion_length=MAX_TOKENS, batch_size=len(rows))
            completions = [completion for [completion] in predictor.complete(encoded)]
        return [
            EvalAnswer(row, completion.text, completion.mask_probs, predictor.head_scores(row, completion))
            for row, completion in zip(encoded, completions, strict=True)
        ]


def equal_share(samples: Sequence[AVSample], process_index: int, num_processes: int) -> list[AVSample]:
    """Return a process's share of rows. All have equally many, so that some rows may be in two shares."""
    size = -(-len(samples) // num_processes)
    return [samples[(process_index * size + offset) % len(samples)] for offset in range(size)]
