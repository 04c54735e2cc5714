"""Rollouts with media and masks: what is known of them beside TRL's own batch, and the forward passes over them.

TRL calls one seam of the trainer after the other and hands tensors from each to the next. What else they need of one
another stands in one `RolloutBatch`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from trl.trainer.utils import pad

from aurora_rl.metrics import count_masks
from aurora_rl.models.collate import collate_frames, distinct_media
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.eval_mode import eval_mode
from aurora_rl.models.grounding import row_mask_logits, segmentation_model, shared_media
from aurora_rl.models.head_tokens import find_seg
from aurora_rl.models.heads import FrameBatch
from aurora_rl.models.rollout_states import SegStates
from aurora_rl.rewards import Deferred
from aurora_rl.tasks.base import Answer


@dataclasses.dataclass(frozen=True)
class DecodedMasks:
    """Masks of some rows that were decoded together.

    Attributes:
        mask_logits: logits of each row, (F, H, W) at the frames' own size.
        has_seg: (B,) bool, whether a row has a `[SEG]`; the masks of a row without one mean nothing.
    """

    mask_logits: list[torch.Tensor]
    has_seg: torch.Tensor


@dataclasses.dataclass(frozen=True)
class RolloutBatch:
    """What is known of the sequences that TRL works on; a seam that finds out more replaces it by a fuller one.

    Attributes:
        rows: B encoded rows, one for each sequence; the G copies of a row share their tensors.
        scoring_decodes: whether the policy's scoring pass, which is TRL's first one, decodes masks as well.
        states: states at `[SEG]` that sampling has left.
        predictions: masks of all rows in order, as they were decoded together; empty until then.
        answers: what each completion answers; empty until it is read.
    """

    rows: Sequence[EncodedSample]
    scoring_decodes: bool = False
    states: SegStates | None = None
    predictions: tuple[DecodedMasks, ...] = ()
    answers: tuple[Answer, ...] = ()

    @property
    def next_pass_decodes(self) -> bool:
        """True if the next scoring pass decodes masks: the pass after it is of the reference model."""
        return self.scoring_decodes and not self.predictions


class ForwardPasses:
    """Forward passes over prompts and completions, with media and masks.

    Args:
        encode: encoder of the rows.
        seg_token_id: id of `[SEG]`.
        accelerator: the trainer's, which knows device and precision.
    """

    def __init__(self, encode: SampleEncoder, seg_token_id: int, accelerator: Accelerator) -> None:
        self.encode = encode
        self.seg_token_id = seg_token_id
        self.accelerator = accelerator

    def score(
        self,
        model: nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        rows: Sequence[EncodedSample],
        logits_to_keep: int,
        *,
        decodes: bool,
        **options: Any,
    ) -> tuple[Any, DecodedMasks | None]:
        """Run a model once on some rows.

        Args:
            model: policy or reference.
            input_ids: (B, L) prompt, left-padded, then completion, right-padded.
            attention_mask: (B, L), 0 for padding.
            rows: B encoded rows.
            logits_to_keep: number of last positions that are completion.
            decodes: whether the masks at each completion's `[SEG]` are decoded in the same pass.
            **options: further arguments of the model.

        Returns:
            The model's outputs with `log_probs` and `entropy`, and the masks.
        """
        labels = input_ids.masked_fill(attention_mask == 0, -100)
        labels[:, :-logits_to_keep] = -100
        features, media_index = distinct_media(rows)
        media = self.encode.family.collate_features(features, media_index)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **options}
        inputs |= {name: tensor.to(input_ids.device) for name, tensor in media.items()}
        if decodes:
            seg_index, has_seg = find_seg(
                input_ids, attention_mask, self.seg_token_id, num_completion_tokens=logits_to_keep
            )
            frames = _frames_on(input_ids.device, rows)
            inputs |= {"seg_index": seg_index, **frames}
        with self.accelerator.autocast(), shared_media(model, media_index):
            outputs = model(**inputs, labels=labels, fused_lm_head=True)
        return outputs, _decoded(model, outputs.mask_logits, frames, rows, has_seg) if decodes else None

    @torch.no_grad()
    def predictions_of(
        self, model: nn.Module, batch: RolloutBatch, completion_ids: Sequence[Sequence[int]], *, batch_size: int
    ) -> tuple[DecodedMasks, ...]:
        """Return the masks of a batch of rollouts from where they cost least.

        Args:
            model: the policy.
            batch: the rollouts' rows, and what is known of them.
            completion_ids: the completions that rewards are given, which need not be those that were sampled.
            batch_size: number of rows that are decoded together.
        """
        if batch.predictions:  # the pass that has scored the rollouts decoded them as well
            return batch.predictions
        chunks = [slice(start, start + batch_size) for start in range(0, len(batch.rows), batch_size)]
        if batch.states is not None and batch.states.belong_to(completion_ids):  # the head runs alone
            return tuple(self._from_states(model, batch.states, batch.rows, chunk) for chunk in chunks)
        return self._by_a_pass_of_their_own(model, batch.rows, completion_ids, chunks)

    def _from_states(
        self, model: nn.Module, states: SegStates, rows: Sequence[EncodedSample], chunk: slice
    ) -> DecodedMasks:
        head, hidden_states = segmentation_model(model).seg_head, states.hidden_states[chunk]
        frames = _frames_on(hidden_states.device, rows[chunk])
        with self.accelerator.autocast(), eval_mode(head):
            raw = head(
                hidden_states, FrameBatch(frames["seg_frames"], frames["seg_frame_counts"], frames["seg_clip_index"])
            )
        return _decoded(model, raw["mask_logits"], frames, rows[chunk], states.has_seg[chunk])

    def _by_a_pass_of_their_own(
        self,
        model: nn.Module,
        rows: Sequence[EncodedSample],
        completion_ids: Sequence[Sequence[int]],
        chunks: Sequence[slice],
    ) -> tuple[DecodedMasks, ...]:
        input_ids, attention_mask = self._padded([row.prompt.prompt_ids for row in rows], completion_ids)
        length = max(map(len, completion_ids))
        decoded: list[Any] = []
        with eval_mode(model):
            for chunk in chunks:
                _, masks = self.score(model, input_ids[chunk], attention_mask[chunk], rows[chunk], length, decodes=True)
                decoded.append(masks)
        return tuple(decoded)

    def _padded(
        self, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `input_ids` and `attention_mask`, both (B, L): prompts left-padded, completions right-padded."""
        device, pad_token_id = self.accelerator.device, self.encode.tokenizer.pad_token_id
        sides = [(prompt_ids, "left"), (completion_ids, "right")]
        ids, masks = [], []
        for sequences, side in sides:
            tensors = [torch.tensor(sequence, device=device) for sequence in sequences]
            ids.append(pad(tensors, padding_value=pad_token_id, padding_side=side))
            masks.append(pad([torch.ones_like(x) for x in tensors], padding_value=0, padding_side=side))
        return torch.cat(ids, dim=1), torch.cat(masks, dim=1)


def reward_rows(inputs: Sequence[Mapping[str, Any]], batch: RolloutBatch) -> list[dict[str, Any]]:
    """Return the rows for the reward functions: with media columns, and with masks where there is a `[SEG]`.

    The rows of a task without a head, for which nothing is predicted, have no columns of masks.
    """
    columns = zip(inputs, batch.rows, batch.answers, _columns_of_masks(batch), strict=True)
    return [
        {
            **{**row, "sample": encoded.sample, "gt_masks": encoded.gt_masks, "loudness_dbfs": encoded.loudness_dbfs},
            **masks,
            "answers": answer,
        }
        for row, encoded, answer, masks in columns
    ]


def _columns_of_masks(batch: RolloutBatch) -> list[Mapping[str, Any]]:
    if not batch.predictions:
        return [{}] * len(batch.rows)
    mask_logits = [row for decoded in batch.predictions for row in decoded.mask_logits]
    has_seg = [seg for decoded in batch.predictions for seg in decoded.has_seg.tolist()]
    # The G copies of a row share their ground truth, which goes to the masks' device once.
    device = mask_logits[0].device
    truths = {id(row.gt_masks): None if row.gt_masks is None else row.gt_masks.to(device) for row in batch.rows}
    return [
        mask_columns(logits, encoded.gt_masks, truths[id(encoded.gt_masks)]) if seg else _NO_MASKS
        for encoded, logits, seg in zip(batch.rows, mask_logits, has_seg, strict=True)
    ]


#: Columns of a completion without `[SEG]`.
_NO_MASKS: dict[str, Any] = {"pred_masks": None, "mask_probs": None, "mask_counts": None}


@torch.no_grad()
def mask_columns(
    mask_logits: torch.Tensor, gt_masks: torch.Tensor | None, truth: torch.Tensor | None
) -> dict[str, Any]:
    """Return the columns of a completion's masks; probabilities are computed when a reward function reads them.

    Args:
        mask_logits: (A, H, W) logits of the annotated frames.
        gt_masks: (A, H, W) bool, on the CPU; None for a row without truth, whose `mask_counts` are None, too.
        truth: `gt_masks` on the logits' device.
    """
    predicted = mask_logits > 0  # p > 0.5
    pred_masks, counts = predicted.cpu(), None
    if gt_masks is not None and truth is not None:
        counts = count_masks(predicted, truth).on_cpu(pred_masks, gt_masks)
    probs = Deferred(lambda: mask_logits.detach().float().sigmoid().cpu())
    return {"pred_masks": pred_masks, "mask_probs": probs, "mask_counts": counts}


def _frames_on(device: torch.device, rows: Sequence[EncodedSample]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in collate_frames(rows).items()}


def _decoded(
    model: nn.Module,
    mask_logits: torch.Tensor,
    frames: Mapping[str, torch.Tensor],
    rows: Sequence[EncodedSample],
    has_seg: torch.Tensor,
) -> DecodedMasks:
    frame_counts = frames["seg_frame_counts"][frames["seg_clip_index"]]
    sizes, annotated_frames = [row.frame_size for row in rows], [row.annotated_frames for row in rows]
    return DecodedMasks(row_mask_logits(model, mask_logits, frame_counts, sizes, annotated_frames), has_seg)
