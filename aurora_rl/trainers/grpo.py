"""GRPO with frames, sound and masks: TRL's GRPOTrainer with its seams taken where media and masks come in.

A generation batch, in TRL's order (method names are TRL's):

    _generate_and_score_completions   rows -> EncodedSample, one for each distinct row
      _tokenize_prompts               prompt ids and media tensors
      _generate_single_turn           rollouts, in eval mode, and their states at `[SEG]`
      _get_per_token_logps...         old and reference log-probabilities, where TRL wants them
      _calculate_rewards              masks of every completion -> columns of the reward functions
    _compute_loss                     one forward: log-probabilities and masks -> policy loss + mask loss
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import GRPOTrainer
from trl.extras.profiling import profiling_context
from trl.trainer.utils import pad

from aurora_rl.data.sample import AVSample
from aurora_rl.losses import mask_loss
from aurora_rl.metrics import count_masks
from aurora_rl.models.adapters import check_trained_head
from aurora_rl.models.collate import collate_frames, distinct_media
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.grounding import (
    install_mask_forward,
    row_mask_logits,
    segmentation_model,
    shared_media,
)
from aurora_rl.models.head_tokens import find_seg
from aurora_rl.models.heads import FrameBatch, MaskHead
from aurora_rl.models.loading import LoadedModel
from aurora_rl.models.read_ahead import ReadAhead
from aurora_rl.models.rollout_states import SegStates, recorded_states
from aurora_rl.models.sharding import gather_at_once
from aurora_rl.rewards import Deferred, guard_reward_func, load_reward_func
from aurora_rl.rollout.sampler import VLLMSampler
from aurora_rl.tasks.base import Answer, completion_text
from aurora_rl.trainers.epoch_order import EpochOrder
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from aurora_rl.trainers.health import RolloutHealthCallback
from aurora_rl.trainers.reference_model import (
    frozen_copy,
    install_reference,
    load_policy_beside_reference,
    only_trained_adapters,
)
from aurora_rl.trainers.resumable import ResumableTrainer
from aurora_rl.trainers.rollout_metrics import reward_metrics, rollout_metrics
from aurora_rl.trainers.upcoming import UpcomingBatches
from aurora_rl.trainers.vllm_engine import vllm_engine


@dataclasses.dataclass(frozen=True)
class DecodedMasks:
    """Masks of some rows that a forward pass has decoded.

    Attributes:
        mask_logits: logits of each row, (F, H, W) at the frames' own size.
        has_seg: (B,) bool, whether a row has a `[SEG]`; the masks of a row without one mean nothing.
    """

    mask_logits: list[torch.Tensor]
    has_seg: torch.Tensor


class AuroraGRPOTrainer(ResumableTrainer, GRPOTrainer):
    """TRL's GRPOTrainer for omni-modal models with a segmentation head.

    Args:
        model: the model from `models.loading.load_model`, with or without PEFT.
        reward_funcs: names (`"reward_fns.mask_iou:mask_iou_reward"`, `"path/to/mine.py:my_reward"`) or callables.
        args: the configuration.
        encode: encoder that turns a sample into tensors.
        seg_token_id: id of `[SEG]`.
        **kwargs: arguments of TRL's trainer: `train_dataset` (rows of `data.dataset.to_dataset`), `eval_dataset`,
            `processing_class`, `peft_config`, `callbacks`, `optimizers`. `tools` and `environment_factory` are refused.

    Raises:
        ValueError: if tools or an environment are given.
    """

    args: AuroraGRPOConfig
    _name = "Aurora GRPO"

    def __init__(
        self,
        model: PreTrainedModel,
        reward_funcs: str | Callable[..., Any] | Sequence[str | Callable[..., Any]],
        args: AuroraGRPOConfig,
        *,
        encode: SampleEncoder,
        seg_token_id: int,
        **kwargs: Any,
    ) -> None:
        _refuse_more_turns(kwargs)
        self.encode = encode
        self.seg_token_id = seg_token_id
        # The rows of the current sequences, and the list that the next forward passes add their masks to.
        self._rows: list[EncodedSample] = []
        self._mask_sink: list[DecodedMasks] | None = None
        # States that sampling has recorded, from which the current rollouts' masks are decoded.
        self._seg_states: SegStates | None = None
        # The epoch's batches to come, and TRL's count of micro-batches at the epoch's start.
        self._upcoming: UpcomingBatches | None = None
        self._first_step = 0
        self._order: EpochOrder | None = None

        specs = [reward_funcs] if isinstance(reward_funcs, str) or callable(reward_funcs) else list(reward_funcs)
        guarded = [guard_reward_func(load_reward_func(spec), timeout_s=args.reward_timeout_s) for spec in specs]
        needs_copy = args.beta != 0.0 and not is_peft_model(model) and kwargs.get("peft_config") is None
        reference = frozen_copy(model) if needs_copy else None
        # TRL's constructor would build a reference of a class it does not know, and an engine for images only.
        without_reference = {"beta": 0.0, "sync_ref_model": False} if needs_copy else {}
        with _options(args, use_vllm=False, **without_reference):
            super().__init__(model=model, reward_funcs=guarded, args=args, **kwargs)
        check_trained_head(self.model)
        self._ahead = ReadAhead(encode)
        self.beta, self.use_vllm = args.beta, args.use_vllm
        if reference is not None:
            install_reference(self, reference)
        if self.use_vllm:
            loaded = LoadedModel(self.model, self.encode.processor, self.encode.family)
            self.vllm_generation = vllm_engine(self, loaded)
            self._vllm = VLLMSampler(self.vllm_generation, seed=args.seed, process_index=self.accelerator.process_index)
        # After super(), which has put its fused LM head in place of `forward`.
        policy = self.model.get_base_model() if is_peft_model(self.model) else self.model
        install_mask_forward(policy)
        gather_at_once(self.model, MaskHead)
        if args.mask_loss_on == "off":
            policy.seg_head.requires_grad_(False)
        self.add_callback(RolloutHealthCallback())

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        self._order = EpochOrder(super()._get_train_sampler(dataset), lambda: int(self.state.epoch))
        return self._order

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
        self._rows = self._encode_rows(inputs)
        self._rollout_masks: list[DecodedMasks] = []
        self._mask_sink = self._rollout_masks if self.args.masks_share_forward else None
        output = super()._generate_and_score_completions(inputs)
        self._rollout_masks = []  # at the frames' own size they take gigabytes
        self._seg_states = None
        # Lists survive TRL's whitelist, shuffling and splitting.
        output["encoded_rows"] = self._rows
        return output | self._mask_weights(output["completion_ids"], output["completion_mask"])

    def _encode_rows(self, inputs: list[dict[str, Any]]) -> list[EncodedSample]:
        """Read each distinct row once, ahead of its turn in training; its G copies share the tensors."""
        encoded = self._ahead.take([AVSample.from_row(row) for row in inputs])
        if self.model.training:
            self._ahead.begin([AVSample.from_row(row) for row in self._next_generation_batch()])
        return encoded

    def _next_generation_batch(self) -> list[dict[str, Any]]:
        """Return the rows of this process's next rollouts; none if the run ends before them."""
        if self._upcoming is None:
            return []
        generate_every = self.args.steps_per_generation * self.num_iterations
        distance = generate_every - self._step % generate_every
        place, per_step = self._step - self._first_step, self.args.gradient_accumulation_steps
        end = place % per_step + distance  # micro-batches from the start of this step to the next rollouts
        steps_left = self.state.max_steps - self.state.global_step
        if end // per_step >= steps_left:
            return []
        rows = self._upcoming.look_ahead(place, distance)
        if rows is not None:
            return rows
        # The end of the epoch also ends a step, which may have fewer micro-batches.
        return self._first_rows_of_next_epoch() if math.ceil(end / per_step) < steps_left else []

    def _first_rows_of_next_epoch(self) -> list[dict[str, Any]]:
        """Predict which rows the data loader will give first; if it gives others, they are read when they come."""
        if self._order is None:
            return []
        num_rows = self.args.per_device_train_batch_size * self.args.steps_per_generation
        start = self.accelerator.process_index * num_rows
        order = self._order.of(int(self.state.epoch) + 1)
        return [self.train_dataset[index] for index in itertools.islice(order, start, start + num_rows)]

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        if self._upcoming is None or self._upcoming.batches is not epoch_iterator:
            self._upcoming, self._first_step = UpcomingBatches(epoch_iterator), self._step
        return super().get_batch_samples(self._upcoming, num_batches, device)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `ResumableTrainer` does, and read media ahead meanwhile."""
        try:
            with self._ahead:
                return super().train(*args, **kwargs)
        finally:
            self._upcoming = None

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict[str, torch.Tensor]]:
        """Take the media of the prompts from `self._rows`; TRL knows images only (huggingface/trl#6294)."""
        if len(prompts) != len(self._rows):
            raise RuntimeError(f"{len(prompts)} prompts for {len(self._rows)} encoded rows: TRL's order has changed")
        media = {}
        if not self.use_vllm:  # vLLM runs the processor itself
            features, media_index = distinct_media(self._rows)
            media = self.encode.family.collate_features(features, media_index)
        return [row.prompt.prompt_ids for row in self._rows], None, media

    def _generate_single_turn(
        self, prompt_ids: list, images: Any, multimodal_fields: Any, num_generations: int, *args: Any, **kwargs: Any
    ) -> Any:
        if self.use_vllm:
            rollouts = self._vllm.generate(
                [row.prompt for row in self._rows],
                num_generations=num_generations,
                step=self.state.global_step,
                is_eval=not self.model.training,
                profile=functools.partial(profiling_context, self),
            )
            return rollouts.completion_ids, rollouts.logprobs
        _, media_index = distinct_media(self._rows)
        recording = recorded_states(self.model) if self._states_are_recorded else contextlib.nullcontext()
        # TRL samples in train mode, with LoRA's dropout on.
        with _eval_mode(self.model), shared_media(self.model, media_index), recording as states:
            completion_ids, logprobs = super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs
            )
        self._seg_states = states.at_last(self.seg_token_id, completion_ids) if states is not None else None
        return completion_ids, logprobs

    @property
    def _states_are_recorded(self) -> bool:
        """True if the rollouts' masks come from states that are recorded while sampling.

        Where weights are spread over the processes, all of them must run the same modules through the same wrapper;
        but a state may be missing on one process alone, which would then run one forward pass more than the others.
        """
        is_sharded = is_deepspeed_zero3_enabled() or self.is_fsdp_enabled
        return not (self.args.masks_share_forward or self.use_vllm or is_sharded)

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
        """Compute what TRL's method does, with each chunk's media, and with masks if `_mask_sink` is a list."""
        sink, self._mask_sink = self._mask_sink, None
        all_logps, all_entropies, all_aux_losses = [], [], []
        batch_size = batch_size or len(input_ids)
        with contextlib.nullcontext() if torch.is_grad_enabled() else _eval_mode(model):
            for start in range(0, len(input_ids), batch_size):
                chunk = slice(start, start + batch_size)
                outputs = self._forward_chunk(
                    model, input_ids[chunk], attention_mask[chunk], self._rows[chunk], logits_to_keep, sink,
                    output_router_logits=compute_aux_loss,
                )  # fmt: skip
                all_logps.append(outputs.log_probs[:, -logits_to_keep:])
                if compute_entropy:
                    all_entropies.append(outputs.entropy[:, -logits_to_keep:])
                if compute_aux_loss:
                    all_aux_losses.append(outputs.aux_loss)
        return (
            torch.cat(all_logps),
            torch.cat(all_entropies) if compute_entropy else None,
            torch.stack(all_aux_losses).mean() if compute_aux_loss else None,
        )

    def _forward_chunk(
        self,
        model: nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        rows: list[EncodedSample],
        logits_to_keep: int,
        sink: list[DecodedMasks] | None,
        *,
        output_router_logits: bool,
    ) -> Any:
        labels = input_ids.masked_fill(attention_mask == 0, -100)
        labels[:, :-logits_to_keep] = -100
        features, media_index = distinct_media(rows)
        media = self.encode.family.collate_features(features, media_index)
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        inputs |= {name: tensor.to(input_ids.device) for name, tensor in media.items()}
        if output_router_logits:
            inputs["output_router_logits"] = True
        if sink is not None:
            seg_index, has_seg = find_seg(
                input_ids, attention_mask, self.seg_token_id, num_completion_tokens=logits_to_keep
            )
            frames = _frames_on(input_ids.device, rows)
            inputs |= {"seg_index": seg_index, **frames}
        with self.accelerator.autocast(), shared_media(model, media_index):
            outputs = model(**inputs, labels=labels, fused_lm_head=True)
        if sink is not None:
            sink.append(_decoded(model, outputs.mask_logits, frames, rows, has_seg))
        return outputs

    # ---- rewards ------------------------------------------------------------------------------------------------

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        if not self._rollout_masks:
            if self._seg_states is not None and self._seg_states.belong_to(completion_ids_list):
                self._decode_states(self._seg_states)
            else:
                self._decode_rollouts(completion_ids_list)
        rows = self._with_masks(inputs)
        task = self.encode.task
        answers = [task.parse(completion_text(completion)) for completion in completions]
        self._answer_is_correct = [
            task.is_right(answer, row.sample) for answer, row in zip(answers, self._rows, strict=True)
        ]
        self._log_rollouts(rows, answers)
        rows = [{**row, "answers": answer} for row, answer in zip(rows, answers, strict=True)]
        rewards_per_func = super()._calculate_rewards(rows, prompts, completions, completion_ids_list)
        start = self.accelerator.process_index * len(self._rows)
        local = rewards_per_func[start : start + len(self._rows)]
        samples = [row.sample for row in self._rows]
        for name, metric in reward_metrics(samples, local, self.reward_weights.to(local.device)):
            self._log_metric(name, metric)
        return rewards_per_func

    def _with_masks(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows for the reward functions: with media columns, and with masks where there is a `[SEG]`."""
        mask_logits = [row for decoded in self._rollout_masks for row in decoded.mask_logits]
        has_seg = [seg for decoded in self._rollout_masks for seg in decoded.has_seg.tolist()]
        # The G copies of a row share their ground truth, which goes to the masks' device once.
        truths = {id(row.gt_masks): row.gt_masks.to(mask_logits[0].device) for row in self._rows}
        return [
            {**row, "sample": encoded.sample, "gt_masks": encoded.gt_masks, "loudness_dbfs": encoded.loudness_dbfs}
            | (_mask_columns(logits, encoded.gt_masks, truths[id(encoded.gt_masks)]) if seg else _NO_MASKS)
            for row, encoded, logits, seg in zip(inputs, self._rows, mask_logits, has_seg, strict=True)
        ]

    @torch.no_grad()
    def _decode_states(self, states: SegStates) -> None:
        """Decode the masks from the states recorded while sampling; only the segmentation head runs."""
        head = segmentation_model(self.model).seg_head
        for start in range(0, len(self._rows), self._mask_batch_size):
            chunk = slice(start, start + self._mask_batch_size)
            rows, hidden_states = self._rows[chunk], states.hidden_states[chunk]
            frames = _frames_on(hidden_states.device, rows)
            with self.accelerator.autocast(), _eval_mode(head):
                raw = head(
                    hidden_states,
                    FrameBatch(frames["seg_frames"], frames["seg_frame_counts"], frames["seg_clip_index"]),
                )
            self._rollout_masks.append(_decoded(self.model, raw["mask_logits"], frames, rows, states.has_seg[chunk]))

    @property
    def _mask_batch_size(self) -> int:
        return self.args.per_device_train_batch_size if self.model.training else self.args.per_device_eval_batch_size

    @torch.no_grad()
    def _decode_rollouts(self, completion_ids_list: list[list[int]]) -> None:
        """Decode the masks by a forward pass of the whole model, where the states were not all recorded."""
        device, pad_token_id = self.accelerator.device, self._tokenizer.pad_token_id
        prompt_ids = [torch.tensor(row.prompt.prompt_ids, device=device) for row in self._rows]
        completion_ids = [torch.tensor(ids, device=device) for ids in completion_ids_list]

        def joined(prompt_side: list[torch.Tensor], completion_side: list[torch.Tensor], value: int) -> torch.Tensor:
            left = pad(prompt_side, padding_value=value, padding_side="left")
            return torch.cat([left, pad(completion_side, padding_value=value, padding_side="right")], dim=1)

        input_ids = joined(prompt_ids, completion_ids, pad_token_id)
        prompt_mask, completion_mask = ([torch.ones_like(x) for x in ids] for ids in (prompt_ids, completion_ids))
        attention_mask = joined(prompt_mask, completion_mask, 0)
        self._mask_sink = self._rollout_masks
        self._get_per_token_logps_and_entropies(
            self.model,
            input_ids,
            attention_mask,
            max(len(ids) for ids in completion_ids_list),
            batch_size=self._mask_batch_size,
        )

    def _log_rollouts(self, rows: list[dict[str, Any]], answers: list[Answer]) -> None:
        """Log the columns of the completions table and the curves that TRL does not have."""
        iou = [0.0 if row["mask_counts"] is None else row["mask_counts"].mask_iou for row in rows]
        samples = [row["sample"] for row in rows]
        for column, values in {
            "uid": [sample.uid for sample in samples],
            "reference": [sample.reference for sample in samples],
            "category": [sample.category for sample in samples],
            "mask_iou": iou,
        }.items():
            self._log_completion_extra(column, values)
        for name, metric in rollout_metrics(self.encode.task, samples, answers, iou):
            self._log_metric(name, metric)

    # ---- loss ---------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        self._rows = inputs["encoded_rows"]
        if self.args.mask_loss_on == "off":
            return super()._compute_loss(model, inputs)
        decoded: list[DecodedMasks] = []
        self._mask_sink = decoded
        policy_loss = super()._compute_loss(model, inputs)
        return policy_loss + self._mask_loss(decoded[0], inputs["mask_weights"], inputs["masks_per_forward"])

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
        if self.args.mask_loss_on == "correct_only":
            weights &= torch.tensor(self._answer_is_correct, device=weights.device)
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
            [row.gt_masks.to(device) for row in self._rows],
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


#: Columns of a completion without `[SEG]`.
_NO_MASKS: dict[str, Any] = {"pred_masks": None, "mask_probs": None, "mask_counts": None}


@torch.no_grad()
def _mask_columns(mask_logits: torch.Tensor, gt_masks: torch.Tensor, truth: torch.Tensor) -> dict[str, Any]:
    """Return the columns of a completion's masks; probabilities are computed when a reward function reads them.

    Args:
        mask_logits: (F, H, W) logits.
        gt_masks: (F, H, W) bool, on the CPU.
        truth: `gt_masks` on the logits' device.
    """
    predicted = mask_logits > 0  # p > 0.5
    pred_masks = predicted.cpu()
    return {
        "pred_masks": pred_masks,
        "mask_probs": Deferred(lambda: mask_logits.detach().float().sigmoid().cpu()),
        "mask_counts": count_masks(predicted, truth).on_cpu(pred_masks, gt_masks),
    }


def _frames_on(device: torch.device, rows: list[EncodedSample]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in collate_frames(rows).items()}


def _decoded(
    model: nn.Module,
    mask_logits: torch.Tensor,
    frames: dict[str, torch.Tensor],
    rows: list[EncodedSample],
    has_seg: torch.Tensor,
) -> DecodedMasks:
    frame_counts = frames["seg_frame_counts"][frames["seg_clip_index"]]
    sizes, annotated_frames = [row.frame_size for row in rows], [row.annotated_frames for row in rows]
    return DecodedMasks(row_mask_logits(model, mask_logits, frame_counts, sizes, annotated_frames), has_seg)


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


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off while the block runs."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
