"""Scores of one answer: its words, as its task judges them, and its masks.

This is the step between inference and `tables.py`: an answer (text, mask probabilities) becomes a `RowResult`. A row's
scores depend only on that row, so batch size and number of processes change no digit. Frames without annotation are
predicted, and saved, but not scored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from aurora_rl import metrics
from aurora_rl.boundary import boundary_f_measure
from aurora_rl.data.run_lengths import encode_masks
from aurora_rl.data.sample import AVSample
from aurora_rl.evaluation.presets import Preset, find_preset
from aurora_rl.evaluation.records import CompletionScore, MaskScore, RolloutScore, RowResult, Scores, check_numbers
from aurora_rl.metrics import MASK_THRESHOLD
from aurora_rl.tasks.base import Answer, Task
from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation

#: The head whose predictions are scored as masks; those of others come as scores by name.
MASKS = ReferenceSegmentation.head


def score_masks(
    mask_probs: Tensor | None,
    gt_masks: Tensor | np.ndarray,
    *,
    preset: str = "refavs",
    mask_logits: Tensor | None = None,
) -> MaskScore:
    """Score one clip's predicted masks.

    A missing prediction is an empty mask at every threshold. (An all-zero probability map is not: the lowest threshold
    is 0, where the definition of F takes every pixel as predicted and gives a little credit.)

    Args:
        mask_probs: probabilities, (F, h, w) float of any size; None if there are no masks.
        gt_masks: true masks, (F, H, W) bool.
        preset: name of a preset, a key of `PRESETS`.
        mask_logits: logits of `mask_probs`, (F, h, w) float, for a preset that thresholds them; if they are None or
            must be resized, logit(p) of the probabilities at the preset's size is used.

    Returns:
        Scores of the clip. For example a clip of one frame of 2 x 2 pixels with the truth [[1, 1], [0, 0]] and the
        prediction [[0.9, 0.1], [0.1, 0.1]] has a J of 0.5 under preset `aurora`.

    Raises:
        ValueError: if the preset is unknown, or shapes or ranges are wrong.
    """
    settings, gt_masks = find_preset(preset), torch.as_tensor(gt_masks)
    size = _preset_size((gt_masks.shape[1], gt_masks.shape[2]), preset)
    probs = metrics.resize_probs(_zeros_if_missing(mask_probs, gt_masks), size)
    truth = metrics.resize_truth(gt_masks, size)
    pred_masks, j_masks = probs > MASK_THRESHOLD, probs > settings.j_threshold  # (F, *size)
    if settings.is_davis:
        f_curve = torch.zeros(0)
        j, f = metrics.jaccard(j_masks, truth), float(boundary_f_measure(j_masks, truth).mean())
    else:
        logits = mask_logits if mask_logits is not None and mask_logits.shape == probs.shape else None
        f_curve = torch.zeros(0) if mask_probs is None else _f_curve(probs, logits, truth, settings)
        j, f = metrics.region_similarity(j_masks, truth), float(f_curve.max()) if len(f_curve) else 0.0
    return MaskScore(
        J=float(j.mean()),
        F=f,
        f_curve=tuple(f_curve.tolist()),
        S=metrics.null_s(pred_masks),
        S_per_frame=math.fsum(metrics.null_s(frame[None]) for frame in pred_masks) / len(pred_masks),
        is_missing=mask_probs is None,
    )


def score_completion(
    text: str,
    mask_probs: Tensor | None,
    gt_masks: Tensor | np.ndarray | None,
    sample: AVSample,
    *,
    preset: str = "refavs",
    task: Task | None = None,
    head_scores: Scores | None = None,
) -> CompletionScore:
    """Score a greedy completion: its words and the mask-IoU reward; the result keeps its masks.

    Args:
        text: the completion as generated, before anything was appended to it.
        mask_probs: probabilities, (F, h, w) float; None if the model gave no masks.
        gt_masks: true masks of the annotated frames, (A, H, W) bool; None if they are not known.
        sample: the row that was asked.
        preset: name of a preset, a key of `PRESETS`.
        task: the task that was asked; reference segmentation by default.
        head_scores: scores of the prediction of the task's head, if that does not predict masks.
    """
    task = task or ReferenceSegmentation()
    answer = task.parse(text)
    probs, own_size = _saved_masks(mask_probs, gt_masks, sample, task)
    masks = {}
    if probs is not None:
        own_probs = metrics.resize_probs(probs, own_size)
        preset_probs = metrics.resize_probs(probs, _preset_size(own_size, preset))
        masks["pred_masks"] = encode_masks((own_probs > MASK_THRESHOLD).cpu().numpy())
        masks["preset_masks"] = encode_masks((preset_probs > find_preset(preset).j_threshold).cpu().numpy())
    return CompletionScore(
        text=text,
        value=answer.value,
        is_right=task.is_right(answer, sample),
        scores=_scores_of(task, answer, sample, head_scores),
        iou=_iou_reward(mask_probs, gt_masks, sample, task),
        chosen=task.chosen(answer, sample),
        **masks,
    )


def score_rollout(
    text: str,
    mask_probs: Tensor | None,
    gt_masks: Tensor | np.ndarray | None,
    sample: AVSample,
    *,
    task: Task | None = None,
    head_scores: Scores | None = None,
) -> RolloutScore:
    """Score a sampled completion's words and masks; arguments as in `score_completion`."""
    task = task or ReferenceSegmentation()
    answer = task.parse(text)
    return RolloutScore(
        is_right=task.is_right(answer, sample),
        scores=_scores_of(task, answer, sample, head_scores),
        iou=_iou_reward(mask_probs, gt_masks, sample, task),
    )


def score_answer(
    sample: AVSample,
    text: str,
    mask_probs: Tensor | None,
    gt_masks: Tensor | np.ndarray | None,
    *,
    sampled: Sequence[RolloutScore] = (),
    preset: str = "refavs",
    task: Task | None = None,
    head_scores: Scores | None = None,
) -> RowResult:
    """Score a model's greedy answer to a row, and add the scores of its sampled ones; see `score_completion`."""
    task = task or ReferenceSegmentation()
    greedy = score_completion(text, mask_probs, gt_masks, sample, preset=preset, task=task, head_scores=head_scores)
    score = None
    if gt_masks is not None and task.head == MASKS:
        score = score_masks(annotated_part(mask_probs, sample), gt_masks, preset=preset)
    return RowResult.of_sample(sample, score, preset=preset, greedy=greedy, sampled=sampled)


def _scores_of(task: Task, answer: Answer, sample: AVSample, head_scores: Scores | None) -> Scores:
    """Return the scores of an answer's words and of its head's prediction.

    Raises:
        ValueError: naming the sample, if one is no finite number, which no file of results may hold.
    """
    scores = {**task.text_scores(answer, sample), **(head_scores or {})}
    try:
        check_numbers(scores)
    except ValueError as error:
        raise ValueError(
            f"sample {sample.key}, task {task.name}: the score {error}, or None where it has none"
        ) from None
    return scores


def annotated_part(masks: Tensor | None, sample: AVSample) -> Tensor | None:
    """Return the frames of a prediction (F, h, w) that have a truth, (A, h, w); None stays None."""
    frames = sample.annotated_frames
    return masks if masks is None or frames is None else masks[list(frames)]


def _saved_masks(
    mask_probs: Tensor | None, gt_masks: Tensor | np.ndarray | None, sample: AVSample, task: Task
) -> tuple[Tensor | None, tuple[int, int]]:
    """Return the probabilities (F, h, w) that are saved and the frames' own size.

    A missing prediction is one of empty masks. There are none where a task has no masks, and where neither prediction
    nor truth tells their size.
    """
    known = gt_masks if gt_masks is not None else mask_probs
    if task.head != MASKS or known is None:
        return None, (0, 0)
    own_size = (known.shape[-2], known.shape[-1])
    if mask_probs is not None:
        return mask_probs, own_size
    num_frames = len(known) if sample.annotated_frames is None else sample.num_frames
    return torch.zeros(num_frames, *own_size, device=torch.as_tensor(known).device), own_size


def _zeros_if_missing(mask_probs: Tensor | None, gt_masks: Tensor) -> Tensor:
    """Return the probabilities; zeros for a missing prediction."""
    return torch.zeros(gt_masks.shape, device=gt_masks.device) if mask_probs is None else mask_probs


def _preset_size(own_size: tuple[int, int], preset: str) -> tuple[int, int]:
    """Return the (height, width) at which the preset scores a clip of frames of `own_size`."""
    size = find_preset(preset).size
    return own_size if size is None else (size, size)


def _iou_reward(
    mask_probs: Tensor | None, gt_masks: Tensor | np.ndarray | None, sample: AVSample, task: Task
) -> float | None:
    """Compute the mask-IoU reward, which is 0 without `[SEG]`, even if empty masks would be right."""
    if gt_masks is None or task.head != MASKS:
        return None
    probs = annotated_part(mask_probs, sample)
    if probs is None:
        return 0.0
    truth = torch.as_tensor(gt_masks)
    return metrics.mask_iou(metrics.resize_probs(probs, (truth.shape[1], truth.shape[2])) > MASK_THRESHOLD, truth)


def _f_curve(mask_probs: Tensor, mask_logits: Tensor | None, gt_masks: Tensor, preset: Preset) -> Tensor:
    if not preset.thresholds_logits:
        return metrics.f_measure_curve(mask_probs, gt_masks)
    return metrics.logit_f_measure_curve(torch.logit(mask_probs) if mask_logits is None else mask_logits, gt_masks)
