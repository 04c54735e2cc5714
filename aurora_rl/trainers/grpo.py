"""GRPO with frames, sound and masks: TRL's GRPOTrainer with its seams taken where media and masks come in.

A generation batch, in TRL's order (method names are TRL's):

    _generate_and_score_completions   rows -> EncodedSample, one for each distinct row
      _tokenize_prompts               prompt ids, and the rows that have their media
      _generate_single_turn           rollouts of a source (`rollout/base.py`), and their states at `[SEG]`
      _get_per_token_logps...         old and reference log-probabilities, where TRL wants them
      _calculate_rewards              masks of every completion -> columns of the reward functions
    _compute_loss                     one forward: log-probabilities and masks -> policy loss + mask loss

The seams hand one `RolloutBatch` to one another (`trainers/grounded_rollouts.py`, with the forward passes). Reading and
sampling ahead, refilling and resuming are in base classes (`upcoming.py`, `off_policy.py`, `dynamic_sampling.py`, ...).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import nn
from transformers import PreTrainedModel

from aurora_rl.models.adapters import check_trained_head
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.heads import Head
from aurora_rl.models.loading import LoadedModel
from aurora_rl.models.sharding import keep_together
from aurora_rl.rewards import load_guarded
from aurora_rl.rollout.base import RolloutSource, Turn
from aurora_rl.rollout.transformers_source import TransformersSource
from aurora_rl.tasks.base import completion_text
from aurora_rl.trainers.counterfactuals import CounterfactualTrainer
from aurora_rl.trainers.dynamic_sampling import RefillingTrainer
from aurora_rl.trainers.grounded_rollouts import ForwardPasses, RolloutBatch, reward_rows, states_are_kept
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from aurora_rl.trainers.head_loss import head_loss, head_loss_weights, prepare_heads
from aurora_rl.trainers.health import RolloutHealthCallback
from aurora_rl.trainers.prompt_sharing import WholeGroupsTrainer, share_prompts
from aurora_rl.trainers.reentrant_checkpoints import check_checkpoints
from aurora_rl.trainers.reference_model import PolicyCheckpoints, frozen_copy, install_reference
from aurora_rl.trainers.rollout_metrics import batch_metrics, completion_columns
from aurora_rl.trainers.step_profile import profile_steps
from aurora_rl.trainers.tool_calls import ToolsTrainer
from aurora_rl.trainers.trl_constructor import as_trl_expects
from aurora_rl.trainers.vllm_engine import vllm_engine


class AuroraGRPOTrainer(PolicyCheckpoints, ToolsTrainer, WholeGroupsTrainer, CounterfactualTrainer, RefillingTrainer):
    """TRL's GRPOTrainer for omni-modal models, with the head of the run's task.

    Args:
        model: the model from `models.loading.load_model`, with or without PEFT.
        reward_funcs: names (`"reward_fns.mask_iou:mask_iou_reward"`, `"path/to/mine.py:my_reward"`) or callables.
        args: the configuration.
        encode: encoder that turns a sample into tensors; it holds the task, or those of several data sets.
        reward_sets: whether each function is for a data set in a run on several, see `rewards.call_for_some_rows`.
        **kwargs: arguments of TRL's trainer: `train_dataset` (rows of `data.dataset.to_dataset`), `eval_dataset`,
            `processing_class`, `peft_config`, `callbacks`, `optimizers`; and `sets`, how the rows of several data sets
            are mixed (`data.mixing.MixedSet`); `environment_factory`, see `tool_calls.ToolsTrainer`.

    Raises:
        ValueError: if the model lacks the task's head or a sense of a reward, or tools are given that it cannot call.
    """

    _name = "Aurora GRPO"
    #: Called with each batch of an evaluation and its completions' texts, see `eval_answers.RolloutAnswers`.
    on_eval_rollouts: Callable[[RolloutBatch, list[str]], None] | None = None

    def __init__(
        self,
        model: PreTrainedModel,
        reward_funcs: str | Callable[..., Any] | Sequence[str | Callable[..., Any]],
        args: AuroraGRPOConfig,
        *,
        encode: SampleEncoder,
        reward_sets: Sequence[Mapping[str, bool]] | None = None,
        **kwargs: Any,
    ) -> None:
        self.encode, self.seg_token_id = encode, encode.answer_token_id
        self._batch = RolloutBatch([])
        sets = bool(kwargs.get("sets"))
        guarded = load_guarded(reward_funcs, timeout_s=args.reward_timeout_s, several_sets=sets, of_sets=reward_sets)
        needs_copy = args.beta != 0.0 and not is_peft_model(model) and kwargs.get("peft_config") is None
        reference = frozen_copy(model, encode.family) if needs_copy else None
        with as_trl_expects(model, args, encode, has_copy=needs_copy):
            super().__init__(encode=encode, model=model, reward_funcs=guarded, args=args, **kwargs)
        check_checkpoints(self)
        check_trained_head(self.model)
        self.beta, self.use_vllm = args.beta, args.use_vllm
        install_reference(self, reference)
        self._passes = ForwardPasses(encode, self.seg_token_id, self.accelerator, share_prompts(self))
        if self.use_vllm:
            self.vllm_generation = vllm_engine(self, LoadedModel(self.model, encode.processor, encode.family))
            self._vllm = self.vllm_source()
        # After super(), which has put its fused LM head in place of `forward`.
        prepare_heads(self.model, encode.task.head, is_trained=args.mask_loss_on != "off")
        self.add_callback(RolloutHealthCallback())
        profile_steps(self)

    def _may_resume_after(self, step: int) -> bool:
        return self.args.ends_generation_batch(step)

    def head(self) -> Head | None:
        """Return the head of the run's task inside the model; None for a task without one."""
        return self._passes.head(self.model)

    # ---- rollouts -----------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.begin_tower_outputs()
        return self.refilled(self._roll_out(inputs, self._encode_rows(inputs)))

    def _roll_out(self, inputs: list[dict[str, Any]], rows: list[EncodedSample]) -> dict[str, Any]:
        with self._working_on(rows, scoring_predicts=self.args.masks_share_forward):
            output = super()._generate_and_score_completions(inputs)
            only_right = self.args.mask_loss_on == "correct_only"
            micro_batches = self.args.steps_per_generation if self.model.training else 1
            output |= head_loss_weights(self._passes, self._batch, output, only_right, micro_batches)
        return {**output, "encoded_rows": rows}  # a list survives TRL's whitelist, shuffling and splitting

    @contextlib.contextmanager
    def _working_on(self, rows: Sequence[EncodedSample], *, scoring_predicts: bool) -> Iterator[None]:
        """Begin a batch, and drop what was found out of it at the end: masks of the frames' own size take gigabytes."""
        predicts = scoring_predicts and self.seg_token_id is not None
        try:
            with self.sharing_towers() as outputs:
                self._batch = RolloutBatch(rows, predicts, tower_outputs=outputs)
                yield
        finally:
            self._batch = RolloutBatch(rows)

    def _learn(self, **found: Any) -> None:
        """Put what a seam has found out into the batch."""
        self._batch = dataclasses.replace(self._batch, **found)

    def _generate(self, prompts: list) -> tuple[Any, ...]:
        """Sample as TRL does, and hide the rows that have travelled in the place of images: TRL would process them."""
        *generated, _images, tool_images = super()._generate(prompts)
        return (*generated, None, tool_images)

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], Any, dict[str, torch.Tensor]]:
        """Return the rows in the place of images: where TRL goes on with some prompts alone, it selects these too."""
        rows = self._batch.rows
        if len(prompts) != len(rows):
            raise RuntimeError(f"{len(prompts)} prompts for {len(rows)} encoded rows: TRL's order has changed")
        return [row.prompt.prompt_ids for row in rows], rows, {}

    def _generate_single_turn(
        self, prompt_ids: list, images: Any, multimodal_fields: Any, num_generations: int, *args: Any, **kwargs: Any
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Ask the source; `images` are the rows of these prompts, see `_tokenize_prompts`."""
        turn = Turn(
            num_generations,
            step=self.state.global_step,
            is_eval=not self.model.training,
            first_row=self.accelerator.process_index * len(self._batch.rows),
            profile=self.timed_part,
        )
        with keep_together(self.model, is_fsdp=self.is_fsdp_enabled):
            rollouts = self._source().generate(prompt_ids, images, turn)
        if len(images) == len(self._batch.rows):
            self._batch.all_towers_have_run()
        self._learn(states=rollouts.states)
        return rollouts.completion_ids, rollouts.logprobs

    def _source(self) -> RolloutSource:
        if self.use_vllm:
            return self._vllm
        sample = super()._generate_single_turn
        keeps = states_are_kept(self.args, is_fsdp=self.is_fsdp_enabled, calls_tools=bool(self.encode.tools))
        return TransformersSource(
            self.model,  # not kept: transformers may wrap it anew when training begins
            self.encode.family,
            lambda prompt_ids, media, num_generations: sample(prompt_ids, None, media, num_generations)[0],
            kept_token_id=self.seg_token_id if keeps else None,
            head=self.encode.task.head,
            shares_prompts=self.args.share_prompts,
        )

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Compute what TRL's method does, with each chunk's media, and the predictions that the batch waits for."""
        predicts = self._batch.next_pass_predicts
        options = {"output_router_logits": True} if compute_aux_loss else {}
        logps, entropies, aux_losses, predictions = [], [], [], []  # a chunk's other outputs are freed before the next
        for outputs, of_chunk in self._passes.score(
            model, input_ids, attention_mask, self._batch, logits_to_keep, batch_size, **options
        ):
            logps.append(outputs.log_probs[:, -logits_to_keep:])
            entropies += [outputs.entropy[:, -logits_to_keep:]] if compute_entropy else []
            aux_losses += [outputs.aux_loss] if compute_aux_loss else []
            predictions.append(of_chunk)
        if not torch.is_grad_enabled():  # all rows of the generation batch, not a micro-batch
            self._batch.all_towers_have_run()
            self._learn(log_probs=(*self._batch.log_probs, torch.cat(logps)))
        self._learn(predictions=tuple(predictions) if predicts else self._batch.predictions)
        return (
            torch.cat(logps),
            torch.cat(entropies) if compute_entropy else None,
            torch.stack(aux_losses).mean() if compute_aux_loss else None,
        )

    # ---- rewards ------------------------------------------------------------------------------------------------

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        size, task_of = self._chunk_size, self.encode.task_of
        texts = list(map(completion_text, completions))
        answers = tuple(task_of(row.sample).parse(text) for row, text in zip(self._batch.rows, texts, strict=True))
        predictions = self._passes.predictions_of(self.model, self._batch, completion_ids_list, batch_size=size)
        self._learn(answers=answers, predictions=predictions)
        if self.on_eval_rollouts is not None and not self.model.training:
            self.on_eval_rollouts(self._batch, texts)
        rows = reward_rows(inputs, self._batch, self.head())
        for column, values in completion_columns(rows, self._passes.noun).items():
            self._log_completion_extra(column, values)
        rewards_per_func = super()._calculate_rewards(rows, prompts, completions, completion_ids_list)
        local = rewards_per_func[self.accelerator.process_index * len(rows) :][: len(rows)]
        for name, metric in batch_metrics(task_of, rows, local, self.reward_weights, self.num_generations):
            self._log_metric(name, metric)
        return rewards_per_func

    # ---- loss ---------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        with self._working_on(inputs["encoded_rows"], scoring_predicts=self.args.mask_loss_on != "off"):
            self._learn(taught=self.taught_rows(inputs))
            loss = super()._compute_loss(model, inputs)
            if self._batch.predictions:
                on_head = head_loss(self._passes, self.model, self._batch, self.args, inputs)
                self.log_mean(f"{self._passes.noun}_loss", on_head.detach())
                # Scaled like TRL's policy loss.
                steps = self.current_gradient_accumulation_steps if self._mode == "train" else 1
                loss = loss + self.args.mask_loss_weight * on_head / steps
        self.end_tower_outputs()
        return loss
