"""GRPO with frames, sound and masks: TRL's GRPOTrainer with its seams taken where media and masks come in.

A generation batch, in TRL's order (method names are TRL's):

    _generate_and_score_completions   rows -> EncodedSample, one for each distinct row
      _tokenize_prompts               prompt ids, and the rows that have their media
      _generate_single_turn           rollouts of a source (`rollout/base.py`), and their states at `[SEG]`
      _get_per_token_logps...         old and reference log-probabilities, where TRL wants them
      _calculate_rewards              masks of every completion -> columns of the reward functions
    _compute_loss                     one forward: log-probabilities and masks -> policy loss + mask loss

The seams hand one `RolloutBatch` to one another, which `trainers/grounded_rollouts.py` describes; the forward passes
are there too. Seams of reading ahead and of resuming are in the base classes (`trainers/upcoming.py`, `resumable.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.extras.profiling import profiling_context

from aurora_rl.losses import mask_loss
from aurora_rl.models.adapters import check_trained_head
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.eval_mode import eval_mode
from aurora_rl.models.grounding import freeze_other_heads, install_mask_forward
from aurora_rl.models.head_tokens import find_seg
from aurora_rl.models.heads import MaskHead
from aurora_rl.models.loading import LoadedModel
from aurora_rl.models.sharding import gather_at_once
from aurora_rl.rewards import guard_reward_func, load_reward_func
from aurora_rl.rollout.base import RolloutSource, Turn
from aurora_rl.rollout.transformers_source import TransformersSource
from aurora_rl.rollout.vllm_source import VLLMSource
from aurora_rl.tasks.base import completion_text
from aurora_rl.trainers.grounded_rollouts import DecodedMasks, ForwardPasses, RolloutBatch, reward_rows
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from aurora_rl.trainers.health import RolloutHealthCallback
from aurora_rl.trainers.reference_model import (
    frozen_copy,
    install_reference,
    load_policy_beside_reference,
    only_trained_adapters,
)
from aurora_rl.trainers.rollout_metrics import completion_columns, reward_metrics, rollout_metrics
from aurora_rl.trainers.upcoming import ReadAheadTrainer
from aurora_rl.trainers.vllm_engine import vllm_engine


class AuroraGRPOTrainer(ReadAheadTrainer):
    """TRL's GRPOTrainer for omni-modal models with a segmentation head.

    Args:
        model: the model from `models.loading.load_model`, with or without PEFT.
        reward_funcs: names (`"reward_fns.mask_iou:mask_iou_reward"`, `"path/to/mine.py:my_reward"`) or callables.
        args: the configuration.
        encode: encoder that turns a sample into tensors.
        seg_token_id: id of the head's token, `[SEG]` for masks; None for a task without a head.
        **kwargs: arguments of TRL's trainer: `train_dataset` (rows of `data.dataset.to_dataset`), `eval_dataset`,
            `processing_class`, `peft_config`, `callbacks`, `optimizers`. `tools` and `environment_factory` are refused.

    Raises:
        ValueError: if tools or an environment are given.
    """

    _name = "Aurora GRPO"

    def __init__(
        self,
        model: PreTrainedModel,
        reward_funcs: str | Callable[..., Any] | Sequence[str | Callable[..., Any]],
        args: AuroraGRPOConfig,
        *,
        encode: SampleEncoder,
        seg_token_id: int | None,
        **kwargs: Any,
    ) -> None:
        _refuse_more_turns(kwargs)
        self.encode = encode
        self.seg_token_id = -1 if seg_token_id is None else seg_token_id  # no token has the id -1
        self._batch = RolloutBatch([])

        specs = [reward_funcs] if isinstance(reward_funcs, str) or callable(reward_funcs) else list(reward_funcs)
        guarded = [guard_reward_func(load_reward_func(spec), timeout_s=args.reward_timeout_s) for spec in specs]
        needs_copy = args.beta != 0.0 and not is_peft_model(model) and kwargs.get("peft_config") is None
        reference = frozen_copy(model, encode.family) if needs_copy else None
        # TRL's constructor would build a reference of a class it does not know, and an engine for images only.
        without_reference = {"beta": 0.0, "sync_ref_model": False} if needs_copy else {}
        with _options(args, use_vllm=False, **without_reference):
            super().__init__(encode=encode, model=model, reward_funcs=guarded, args=args, **kwargs)
        check_trained_head(self.model)
        self._passes = ForwardPasses(encode, self.seg_token_id, self.accelerator)
        self.beta, self.use_vllm = args.beta, args.use_vllm
        if reference is not None:
            install_reference(self, reference)
        if self.use_vllm:
            loaded = LoadedModel(self.model, self.encode.processor, self.encode.family)
            self.vllm_generation = vllm_engine(self, loaded)
            self._vllm = VLLMSource(self.vllm_generation, seed=args.seed)
        # After super(), which has put its fused LM head in place of `forward`.
        policy = self.model.get_base_model() if is_peft_model(self.model) else self.model
        install_mask_forward(policy)
        gather_at_once(self.model, MaskHead)
        freeze_other_heads(policy, self._trained_head)
        self.add_callback(RolloutHealthCallback())

    @property
    def _has_head(self) -> bool:
        """Whether the task has a head; without one nothing is decoded, and the loss is TRL's."""
        return self.encode.task.head is not None

    @property
    def _trained_head(self) -> str | None:
        return None if self.args.mask_loss_on == "off" else self.encode.task.head

    def _may_resume_after(self, step: int) -> bool:
        return self.args.ends_generation_batch(step)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with only_trained_adapters(self.model):
            super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_policy_beside_reference(self.model if model is None else model, resume_from_checkpoint)

    # ---- rollouts -----------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        rows = self._encode_rows(inputs)
        with self._working_on(rows, scoring_decodes=self._has_head and self.args.masks_share_forward):
            output = super()._generate_and_score_completions(inputs)
            if self._has_head:
                output |= self._mask_weights(output["completion_ids"], output["completion_mask"])
        # Lists survive TRL's whitelist, shuffling and splitting.
        return {**output, "encoded_rows": rows}

    @contextlib.contextmanager
    def _working_on(self, rows: list[EncodedSample], *, scoring_decodes: bool) -> Iterator[None]:
        """Begin with these rows, and drop what was found out of them: masks of the frames' own size take gigabytes."""
        self._batch = RolloutBatch(rows, scoring_decodes)
        try:
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
            profile=functools.partial(profiling_context, self),
        )
        rollouts = self._source().generate(prompt_ids, images, turn)
        self._learn(states=rollouts.states)
        return rollouts.completion_ids, rollouts.logprobs

    def _source(self) -> RolloutSource:
        if self.use_vllm:
            return self._vllm
        sample = super()._generate_single_turn
        return TransformersSource(
            self.model,  # not kept: transformers may wrap it anew when training begins
            self.encode.family,
            lambda prompt_ids, media, num_generations: sample(prompt_ids, None, media, num_generations)[0],
            kept_token_id=self.seg_token_id if self._states_are_recorded else None,
        )

    @property
    def _states_are_recorded(self) -> bool:
        """True if the rollouts' masks come from states that are recorded while sampling.

        Where weights are spread over the processes, all of them must run the same modules through the same wrapper;
        but a state may be missing on one process alone, which would then run one forward pass more than the others.
        """
        is_sharded = is_deepspeed_zero3_enabled() or self.is_fsdp_enabled
        return self._has_head and not (self.args.masks_share_forward or self.use_vllm or is_sharded)

    # ---- one forward: log-probabilities and masks ---------------------------------------------------------------

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
        """Compute what TRL's method does, with each chunk's media, and with the masks that the batch waits for."""
        rows, decodes = self._batch.rows, self._batch.next_pass_decodes
        options = {"output_router_logits": True} if compute_aux_loss else {}
        all_logps, all_entropies, all_aux_losses, all_masks = [], [], [], []
        batch_size = batch_size or len(input_ids)
        with contextlib.nullcontext() if torch.is_grad_enabled() else eval_mode(model):
            for start in range(0, len(input_ids), batch_size):
                chunk = slice(start, start + batch_size)
                outputs, masks = self._passes.score(
                    model, input_ids[chunk], attention_mask[chunk], rows[chunk], logits_to_keep, decodes=decodes,
                    **options,
                )  # fmt: skip
                all_logps.append(outputs.log_probs[:, -logits_to_keep:])
                all_masks.append(masks)
                if compute_entropy:
                    all_entropies.append(outputs.entropy[:, -logits_to_keep:])
                if compute_aux_loss:
                    all_aux_losses.append(outputs.aux_loss)
        if decodes:
            self._learn(predictions=tuple(all_masks))
        return (
            torch.cat(all_logps),
            torch.cat(all_entropies) if compute_entropy else None,
            torch.stack(all_aux_losses).mean() if compute_aux_loss else None,
        )

    # ---- rewards ------------------------------------------------------------------------------------------------

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        is_train = self.model.training
        batch_size = self.args.per_device_train_batch_size if is_train else self.args.per_device_eval_batch_size
        if self._has_head:
            predictions = self._passes.predictions_of(
                self.model, self._batch, completion_ids_list, batch_size=batch_size
            )
            self._learn(predictions=predictions)
        self._learn(answers=tuple(self.encode.task.parse(completion_text(completion)) for completion in completions))
        rows = reward_rows(inputs, self._batch)
        for column, values in completion_columns(rows).items():
            self._log_completion_extra(column, values)
        rewards_per_func = super()._calculate_rewards(rows, prompts, completions, completion_ids_list)
        start = self.accelerator.process_index * len(rows)
        local = rewards_per_func[start : start + len(rows)]
        for name, metric in [
            *rollout_metrics(self.encode.task, rows),
            *reward_metrics(rows, local, self.reward_weights.to(local.device)),
        ]:
            self._log_metric(name, metric)
        return rewards_per_func

    # ---- loss ---------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        has_mask_loss = self._trained_head is not None
        with self._working_on(inputs["encoded_rows"], scoring_decodes=has_mask_loss):
            loss = super()._compute_loss(model, inputs)
            if has_mask_loss:
                [decoded] = self._batch.predictions
                loss = loss + self._mask_loss(decoded, inputs["mask_weights"], inputs["masks_per_forward"])
        return loss

    def _mask_weights(self, completion_ids: torch.Tensor, completion_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Weigh the completions in the mask loss, and count those that a micro-batch has on average.

        The average is over all processes and over the micro-batches of the generation batch, so that the loss does not
        depend on how the batch is split; TRL's `num_items_in_batch` does the same for tokens.

        Returns:
            `mask_weights` (B,) 0 or 1, `masks_per_forward` scalar.
        """
        _, weights = find_seg(
            completion_ids, completion_mask, self.seg_token_id, num_completion_tokens=completion_ids.size(1)
        )
        has_truth = [row.gt_masks is not None for row in self._batch.rows]
        weights &= torch.tensor(has_truth, device=weights.device)
        if self.args.mask_loss_on == "correct_only":
            pairs = zip(self._batch.answers, self._batch.rows, strict=True)
            is_right = [self.encode.task.is_right(answer, row.sample) for answer, row in pairs]
            weights &= torch.tensor(is_right, device=weights.device)
        micro_batches = self.args.steps_per_generation if self.model.training else 1
        num_masks = self.accelerator.gather(weights.sum()).sum().clamp(min=1)
        masks_per_forward = num_masks / (self.accelerator.num_processes * micro_batches)
        return {"mask_weights": weights.float(), "masks_per_forward": masks_per_forward}

    def _mask_loss(
        self, decoded: DecodedMasks, row_weights: torch.Tensor, masks_per_forward: torch.Tensor
    ) -> torch.Tensor:
        """Return this micro-batch's share of the weighted mask loss, scaled like TRL's policy loss.

        The mask loss is a mean over the masks of the generation batch. The mean of the shares of all micro-batches, on
        all processes, is that loss.
        """
        device = row_weights.device
        losses = mask_loss(
            decoded.mask_logits,
            [None if row.gt_masks is None else row.gt_masks.to(device) for row in self._batch.rows],
            row_weights=row_weights,
            normalizer=masks_per_forward,
            bce_weight=self.args.mask_bce_weight,
            dice_weight=self.args.mask_dice_weight,
            dice_variant=self.args.dice_variant,
        )
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["mask_loss"].append(self.accelerator.gather(losses.total.detach()).mean().item())
        steps = self.current_gradient_accumulation_steps if mode == "train" else 1
        return self.args.mask_loss_weight * losses.total / steps


def _refuse_more_turns(options: Mapping[str, Any]) -> None:
    """Raise a ValueError for `tools` and environments: the model would read a second turn without its row's media."""
    for name in ("tools", "environment_factory"):
        if options.get(name):
            raise ValueError(
                f"{name} is given, but a rollout has one turn for now: masks and media belong to the first completion. "
                f"Leave {name} out"
            )


@contextlib.contextmanager
def _options(args: AuroraGRPOConfig, **values: Any) -> Iterator[None]:
    """Set some options to other values while TRL's constructor runs."""
    given = {name: getattr(args, name) for name in values}
    try:
        for name, value in values.items():
            setattr(args, name, value)
        yield
    finally:
        for name, value in given.items():
            setattr(args, name, value)
