"""The exact policy gradient where a row's answers can be listed: each is written once, and nothing is sampled.

_generate_single_turn   all answers of a row in place of G samples, as `tasks.base.Task.answers` lists them
  (rewards, as ever)    a table or a rule that can judge all of them
_compute_loss           `losses.exact_policy_loss` over each row's answers in place of TRL's loss

An answer counts as its task writes it: another spelling of it is among all that the policy may write beside, which
earns what the row's worst answer earns. Evaluations during training sample as usual.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from aurora_rl.losses import exact_policy_loss
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.end_of_turn import end_token_ids
from aurora_rl.trainers.taught_rows import TaughtRowsTrainer


class EnumeratedAnswersTrainer(TaughtRowsTrainer):
    """A GRPO trainer that can train on all answers of each row, see `AuroraGRPOConfig.enumerate_answers`."""

    encode: SampleEncoder
    _batch: Any
    _enumerates = False

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._enumerates = self.args.enumerate_answers and self.model.training  # which is in eval mode while it samples
        return super()._generate_and_score_completions(inputs)

    def _generate_single_turn(self, prompt_ids: list, *args: Any, **kwargs: Any) -> Any:
        if not self._enumerates:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        first = self.accelerator.process_index * len(prompt_ids)
        rows = enumerate(self._batch.rows, start=first)
        return [self._written(row, place % self.args.num_generations) for place, row in rows], None

    def _written(self, row: EncodedSample, number: int) -> list[int]:
        """Return the token ids of one of a row's answers, with its end of turn."""
        sample, args, tokenizer = row.sample, self.args, self.encode.tokenizer
        answers = self.encode.task_of(sample).answers(sample)
        if len(answers) != args.num_generations:
            raise ValueError(
                f"sample {sample.key} has {len(answers)} answers that could be listed, and num_generations is "
                f"{args.num_generations}: enumerate_answers needs as many; set it so, or leave enumerate_answers out"
            )
        ids = [*tokenizer(answers[number], add_special_tokens=False).input_ids, end_token_ids(tokenizer, None)[0]]
        if len(ids) > args.max_completion_length:
            raise ValueError(
                f"sample {sample.key}: the answer {answers[number]!r} has {len(ids)} tokens, and max_completion_length "
                f"is {args.max_completion_length}: raise it"
            )
        return ids

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        if not (self.args.enumerate_answers and self.model.training):
            return super()._compute_loss(model, inputs)
        mask = inputs["completion_mask"]
        input_ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention_mask = torch.cat([inputs["prompt_mask"], mask], dim=1)
        logps, *_ = self._get_per_token_logps_and_entropies(model, input_ids, attention_mask, mask.size(1))
        answer_logps = (logps * mask).sum(1).view(-1, self.args.num_generations)  # (B, G)
        rewards = inputs["advantages"].view_as(answer_logps)  # less each row's mean, which moves nothing
        loss = exact_policy_loss(
            answer_logps, rewards, rest_reward=rewards.amin(1), entropy_weight=self.args.entropy_coef
        )
        probs = answer_logps.detach().exp()
        self.log_mean("answers_probability", probs.sum(1).mean())
        self.log_mean("expected_gain", (probs * rewards).sum(1).mean())
        return loss / self.current_gradient_accumulation_steps
