"""Rollouts with media and predictions: what is known of them beside TRL's own batch, and the forward passes over them.

TRL calls one seam of the trainer after the other and hands tensors from each to the next. What else they need of one
another stands in one `RolloutBatch`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.trainer.utils import pad

from aurora_rl.models.collate import collate_frames, distinct_media
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.eval_mode import eval_mode
from aurora_rl.models.grounding import segmentation_model, shared_media
from aurora_rl.models.head_tokens import find_last_token
from aurora_rl.models.heads import FrameBatch, Head, head_class
from aurora_rl.models.heads.base import run_head
from aurora_rl.models.mllm.sharing import TowerSharingMixin
from aurora_rl.models.other_media import GAIN_COLUMNS
from aurora_rl.models.packed_layout import PackedLayout
from aurora_rl.models.rollout_states import SegStates
from aurora_rl.models.shared_prefix import packed_row
from aurora_rl.models.tower_outputs import TowerOutputs
from aurora_rl.tasks.base import Answer
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from aurora_rl.trainers.prompt_sharing import PromptSharing
from aurora_rl.trainers.taught_rows import TaughtRows


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a head has predicted for some rows together.

    Attributes:
        rows: one prediction a row, see `Head.rows`: mask logits (A, H, W), for example.
        has_token: (B,) bool, whether a row has the head's token; the prediction of a row without one means nothing.
    """

    rows: list[Any]
    has_token: torch.Tensor


@dataclasses.dataclass(frozen=True)
class RolloutBatch:
    """What is known of the sequences that TRL works on; a seam that finds out more replaces it by a fuller one.

    Attributes:
        rows: B encoded rows, one for each sequence; the G copies of a row share their tensors.
        scoring_predicts: whether the policy's scoring pass, which is TRL's first one, runs the head as well.
        states: states at the head's token that sampling has left.
        log_probs: (B, C) log-probabilities of the completions by each pass without gradient over all rows, in order.
        predictions: those of all rows in order, as they were computed together; empty until then, or without a head.
        answers: each completion as the task reads it; empty until then.
        tower_outputs: what frozen towers have computed for the rows' clips; None where every pass runs the towers.
        taught: the rows that the training pass is over; None for all.
    """

    rows: Sequence[EncodedSample]
    scoring_predicts: bool = False
    states: SegStates | None = None
    log_probs: tuple[torch.Tensor, ...] = ()
    predictions: tuple[Predictions, ...] = ()
    answers: tuple[Answer, ...] = ()
    tower_outputs: TowerOutputs | None = None
    taught: TaughtRows | None = None

    @property
    def next_pass_predicts(self) -> bool:
        """True if the next scoring pass runs the head: the pass after it is of the reference model."""
        return self.scoring_predicts and not self.predictions

    def all_towers_have_run(self) -> None:
        """Say that a pass over all rows of a generation batch has ended, as it does on all processes alike."""
        if self.tower_outputs is not None:
            self.tower_outputs.complete()


class ForwardPasses:
    """Forward passes over prompts and completions, with media and with the predictions of the task's head.

    Args:
        encode: encoder of the rows, whose task names the head.
        token_id: id of the head's token; None for a task that is answered in words alone.
        accelerator: the trainer's, which knows device and precision.
        sharing: whether rows of one prompt share it.
    """

    def __init__(
        self, encode: SampleEncoder, token_id: int | None, accelerator: Accelerator, sharing: PromptSharing
    ) -> None:
        self.encode = encode
        self.token_id = token_id
        self.accelerator = accelerator
        self.sharing = sharing

    def head(self, model: nn.Module) -> Head | None:
        """Return the head of the task inside a model, wrapped or not; None for a task without one.

        Raises:
            ValueError: if the model lacks it.
        """
        name = self.encode.task.head
        return None if name is None else segmentation_model(model).head(name)

    @property
    def noun(self) -> str | None:
        """`Head.noun` of the task's head; None without one."""
        name = self.encode.task.head
        return None if name is None else head_class(name).noun

    def score(
        self,
        model: nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        batch: RolloutBatch,
        logits_to_keep: int,
        batch_size: int | None = None,
        **options: Any,
    ) -> Iterator[tuple[Any, Predictions | None]]:
        """Run a model on some rows, chunk by chunk; without dropout, unless gradients are recorded.

        Rows of one prompt in a chunk share it where `sharing` is on, so that rows of a group should be neighbours.

        Args:
            model: policy or reference.
            input_ids: (B, L) prompt, left-padded, then completion, right-padded.
            attention_mask: (B, L), 0 for padding.
            batch: its B encoded rows, whether the head predicts at each completion's token in the same pass, and
                which of the rows the pass is over; then they are one chunk.
            logits_to_keep: C, number of last positions that are completion.
            batch_size: number of rows of a chunk; None for all.
            **options: further arguments of the model.

        Yields:
            The outputs of each chunk with `log_probs` and `entropy`, and its predictions.
        """
        size, rows, predicts, taught = batch_size or len(input_ids), batch.rows, batch.next_pass_predicts, batch.taught
        if not self.sharing.is_tried:
            self._try_sharing(model, input_ids[:size], attention_mask[:size], rows[:size], logits_to_keep)
        if taught is not None:
            input_ids, attention_mask, rows = taught.select(input_ids, attention_mask, rows)
        with contextlib.nullcontext() if torch.is_grad_enabled() else eval_mode(model):
            for start in range(0, len(input_ids), size):
                chunk = slice(start, start + size)
                given = input_ids[chunk], attention_mask[chunk], rows[chunk], logits_to_keep
                scored = self._score_chunk(model, *given, predicts, options, self.sharing.layout(*given))
                yield scored if taught is None else (taught.all_rows(scored[0]), None)

    @torch.no_grad()
    def _try_sharing(
        self,
        model: nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        rows: Sequence[EncodedSample],
        logits_to_keep: int,
    ) -> None:
        """Score the first group both ways, and share prompts if they agree.

        A kernel may fail on one process alone, which still has to run all modules. What else a model refuses of a
        packed row, it refuses on all processes alike.
        """
        group = [row for row, encoded in enumerate(rows) if encoded.prompt is rows[0].prompt]
        batch = input_ids[group], attention_mask[group], [rows[row] for row in group], logits_to_keep

        def score(layout: PackedLayout | None) -> torch.Tensor:
            logps: torch.Tensor = self._score_chunk(model, *batch, False, {}, layout)[0].log_probs
            return logps[:, -logits_to_keep:]

        layout, errors = self.sharing.layout(*batch), list[Exception]()
        assert layout is not None
        with eval_mode(model):
            plain = score(None)
            try:
                shared = score(dataclasses.replace(layout, errors=errors))
            except (RuntimeError, TypeError, ValueError) as error:
                errors.append(error)
        self.sharing.decide(model, errors[0] if errors else shared, plain, batch[1][:, -logits_to_keep:])

    def _score_chunk(
        self,
        model: nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        rows: Sequence[EncodedSample],
        logits_to_keep: int,
        predicts: bool,
        options: Mapping[str, Any],
        layout: PackedLayout | None,
    ) -> tuple[Any, Predictions | None]:
        of_groups = rows if layout is None else [rows[row] for row in layout.first_rows]
        features, media_index = distinct_media(of_groups)
        media = self.encode.family.collate_features(features, media_index)
        text = _plain_inputs(input_ids, attention_mask, logits_to_keep) if layout is None else layout.inputs(input_ids)
        inputs: dict[str, Any] = {**text, **{name: tensor.to(input_ids.device) for name, tensor in media.items()}}
        if predicts and self.token_id is not None:
            token_index, has_token = find_last_token(
                input_ids,
                attention_mask,
                self.token_id,
                num_completion_tokens=logits_to_keep,
                in_calls=self.encode.in_calls,
            )
            token_index = token_index if layout is None else layout.places_of(token_index)
            frames = _frames_on(input_ids.device, rows)
            inputs |= {"seg_index": token_index, "head_name": self.encode.task.head, **frames}
        with self.accelerator.autocast(), shared_media(model, media_index, features), packed_row(model, layout):
            outputs = model(**inputs, **options, fused_lm_head=True)
        if layout is not None:
            for name in ("log_probs", "entropy"):
                if (values := getattr(outputs, name)) is not None:  # the reference gives no entropy
                    setattr(outputs, name, layout.completions(values, logits_to_keep))
        if "seg_index" not in inputs:
            return outputs, None
        return outputs, self._predictions(model, outputs.head_outputs, frames, rows, has_token)

    @torch.no_grad()
    def log_probs_of(
        self,
        model: nn.Module,
        rows: Sequence[EncodedSample],
        completion_ids: Sequence[Sequence[int]],
        *,
        batch_size: int,
    ) -> torch.Tensor:
        """Score completions, without gradient.

        Args:
            model: the policy.
            rows: B encoded rows, whose prompts are read.
            completion_ids: B completions; an empty one is scored as padding, so that there is a token.
            batch_size: number of rows of a chunk.

        Returns:
            (B, C) log-probabilities, right-padded.
        """
        given = [ids or [self.encode.tokenizer.pad_token_id] for ids in completion_ids]
        input_ids, attention_mask = self._padded([row.prompt.prompt_ids for row in rows], given)
        length = max(map(len, given))
        scored = self.score(model, input_ids, attention_mask, RolloutBatch(rows), length, batch_size)
        return torch.cat([outputs.log_probs[:, -length:] for outputs, _ in scored])

    @torch.no_grad()
    def predictions_of(
        self, model: nn.Module, batch: RolloutBatch, completion_ids: Sequence[Sequence[int]], *, batch_size: int
    ) -> tuple[Predictions, ...]:
        """Return what the head predicts for a batch of rollouts, from where it costs least.

        Args:
            model: the policy.
            batch: the rollouts' rows, and what is known of them.
            completion_ids: the completions that rewards are given, which need not be those that were sampled.
            batch_size: number of rows that are computed together.
        """
        if self.token_id is None or batch.predictions:  # the pass that has scored the rollouts predicted as well
            return batch.predictions
        if batch.states is not None and batch.states.belong_to(completion_ids):  # the head runs alone
            chunks = [slice(start, start + batch_size) for start in range(0, len(batch.rows), batch_size)]
            return tuple(self._from_states(model, batch.states, batch.rows, chunk) for chunk in chunks)
        return self._by_a_pass_of_their_own(model, batch.rows, completion_ids, batch_size)

    def _from_states(
        self, model: nn.Module, states: SegStates, rows: Sequence[EncodedSample], chunk: slice
    ) -> Predictions:
        hidden_states, head = states.hidden_states[chunk], self.head(model)
        assert head is not None
        frames = _frames_on(hidden_states.device, rows[chunk])
        of_clips = FrameBatch(frames["seg_frames"], frames["seg_frame_counts"], frames["seg_clip_index"])
        with self.accelerator.autocast(), eval_mode(head):
            raw = run_head(head, hidden_states, of_clips)
        return self._predictions(model, raw, frames, rows[chunk], states.has_seg[chunk])

    def _by_a_pass_of_their_own(
        self,
        model: nn.Module,
        rows: Sequence[EncodedSample],
        completion_ids: Sequence[Sequence[int]],
        batch_size: int,
    ) -> tuple[Predictions, ...]:
        input_ids, attention_mask = self._padded([row.prompt.prompt_ids for row in rows], completion_ids)
        length = max(map(len, completion_ids))
        batch = RolloutBatch(rows, scoring_predicts=True)
        scored = self.score(model, input_ids, attention_mask, batch, length, batch_size)
        return tuple(predictions for _, predictions in scored if predictions is not None)

    def _padded(
        self, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `input_ids` and `attention_mask`, both (B, L): prompts left-padded, completions right-padded."""
        device, pad_token_id = self.accelerator.device, self.encode.tokenizer.pad_token_id
        ids, masks = [], []
        for sequences, side in ((prompt_ids, "left"), (completion_ids, "right")):
            tensors = [torch.tensor(sequence, device=device) for sequence in sequences]
            ids.append(pad(tensors, padding_value=pad_token_id, padding_side=side))
            masks.append(pad([torch.ones_like(x) for x in tensors], padding_value=0, padding_side=side))
        return torch.cat(ids, dim=1), torch.cat(masks, dim=1)

    def _predictions(
        self,
        model: nn.Module,
        raw: Mapping[str, torch.Tensor],
        frames: Mapping[str, torch.Tensor],
        rows: Sequence[EncodedSample],
        has_token: torch.Tensor,
    ) -> Predictions:
        head = self.head(model)
        assert head is not None
        frame_counts = frames["seg_frame_counts"][frames["seg_clip_index"]]
        sizes, annotated_frames = [row.frame_size for row in rows], [row.annotated_frames for row in rows]
        return Predictions(head.rows(raw, frame_counts, sizes, annotated_frames), has_token)


def _plain_inputs(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int
) -> dict[str, torch.Tensor]:
    """Return `input_ids`, `attention_mask` and `labels` on the completions, all (B, L)."""
    labels = input_ids.masked_fill(attention_mask == 0, -100)
    labels[:, :-logits_to_keep] = -100
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def states_are_kept(args: AuroraGRPOConfig, *, is_fsdp: bool, calls_tools: bool = False) -> bool:
    """Tell whether sampling keeps the states that the rollouts' predictions come from.

    Those of a turn are not those of a rollout that goes on after a call.

    Where weights are spread over the processes, all of them must run the same modules through the same wrapper; but a
    state may be missing on one process alone, which would then run one forward pass more than the others.
    """
    is_sharded = is_fsdp or is_deepspeed_zero3_enabled()
    return not (args.masks_share_forward or args.use_vllm or is_sharded or calls_tools)


def new_tower_outputs(model: nn.Module, accelerator: Accelerator, *, is_fsdp: bool) -> TowerOutputs | None:
    """Return a place for the outputs of the towers in one generation batch; None if every pass has to run them.

    They run where the precision is that of training, also in sampling, which has another one with LoRA and `bf16`.

    Args:
        model: the policy, wrapped or not.
        accelerator: the trainer's, which knows the precision.
        is_fsdp: whether FSDP has sharded the model.
    """
    inner = segmentation_model(model)
    if not isinstance(inner, TowerSharingMixin) or not inner.towers_compute_the_same_always():
        return None
    return TowerOutputs(in_step=is_fsdp or is_deepspeed_zero3_enabled(), autocast=accelerator.autocast)


def reward_rows(inputs: Sequence[Mapping[str, Any]], batch: RolloutBatch, head: Head | None) -> list[dict[str, Any]]:
    """Return the rows for the reward functions: the dataset's columns, and what is known of the rollouts.

    Args:
        inputs: the dataset's B rows; further columns of a manifest stand in them as one JSON text, and are columns of
            their own here.
        batch: the batch with predictions and answers.
        head: the task's head; without one there are no columns of truth and predictions.
    """
    rows = [
        {
            **encoded.sample.extra_columns,
            **row,
            "sample": encoded.sample,
            "loudness_dbfs": encoded.loudness_dbfs,
            "answers": answer,
            **dict.fromkeys(GAIN_COLUMNS),  # a trainer fills in those that rewards ask for
        }
        for row, encoded, answer in zip(inputs, batch.rows, batch.answers, strict=True)
    ]
    if head is None:
        return rows
    predictions = [row for together in batch.predictions for row in together.rows]
    has_token = torch.cat([together.has_token for together in batch.predictions])
    # The G copies of a row share their ground truth, which goes to the predictions' device once.
    masks = {id(row.gt_masks): row.gt_masks for row in batch.rows}
    truths = {key: None if truth is None else truth.to(has_token.device) for key, truth in masks.items()}
    columns = zip(batch.rows, predictions, has_token.tolist(), strict=True)
    return [
        row
        | _head_columns(
            head, prediction if has and encoded.asks_head else None, encoded.gt_masks, truths[id(encoded.gt_masks)]
        )
        for row, (encoded, prediction, has) in zip(rows, columns, strict=True)
    ]


def _head_columns(
    head: Head, prediction: Any, gt_masks: torch.Tensor | None, truth: torch.Tensor | None
) -> dict[str, Any]:
    """Return the columns of one row's truth and prediction, which is None without the head's token."""
    if prediction is None:
        return {"gt_masks": gt_masks, "head_score": None if truth is None else 0.0, **head.no_columns}
    columns = head.columns(prediction, gt_masks, truth)
    score = None if truth is None else head.score_of_columns(columns, prediction, truth)
    return {"gt_masks": gt_masks, "head_score": score, **columns}


def _frames_on(device: torch.device, rows: Sequence[EncodedSample]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in collate_frames(rows).items()}
