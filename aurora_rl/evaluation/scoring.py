"""Scores of one answer: its text, its chain of thought and its masks.

This is the step between inference and `tables.py`: an answer (text, mask probabilities) becomes a `RowResult`. A row's
scores depend only on that row, so batch size and number of processes change no digit.
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
from aurora_rl.evaluation.records import CompletionScore, MaskScore, RolloutScore, RowResult
from aurora_rl.metrics import MASK_THRESHOLD
from aurora_rl.tasks.completions import ParsedCompletion, normalise_category, parse_completion
from aurora_rl.tasks.reference_segmentation import hear_score, see_score


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
    size = _preset_size(gt_masks, preset)
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
    gt_masks: Tensor | np.ndarray,
    sample: AVSample,
    *,
    preset: str = "refavs",
) -> CompletionScore:
    """Score a greedy completion: its text, its chain of thought and the mask-IoU reward; the result keeps its masks.

    Args:
        text: the completion as generated, before anything was appended to it.
        mask_probs: probabilities, (F, h, w) float; None if the model gave no masks.
        gt_masks: true masks, (F, H, W) bool.
        sample: the row that was asked.
        preset: name of a preset, a key of `PRESETS`.
    """
    gt_masks = torch.as_tensor(gt_masks)
    parsed = parse_completion(text)
    probs = _zeros_if_missing(mask_probs, gt_masks)
    own_probs = _probs_at_own_size(probs, gt_masks)
    preset_probs = metrics.resize_probs(probs, _preset_size(gt_masks, preset))
    return CompletionScore(
        text=text,
        category=parsed.category,
        format=_format_score(parsed),
        category_correct=_category_score(parsed, sample),
        see=see_score(parsed, sample),
        hear=hear_score(parsed, sample),
        iou=_iou_reward(mask_probs, gt_masks),
        pred_masks=encode_masks((own_probs > MASK_THRESHOLD).cpu().numpy()),
        preset_masks=encode_masks((preset_probs > find_preset(preset).j_threshold).cpu().numpy()),
    )


def score_rollout(
    text: str, mask_probs: Tensor | None, gt_masks: Tensor | np.ndarray, sample: AVSample
) -> RolloutScore:
    """Compute a sampled completion's rewards: format, category and mask IoU; arguments as in `score_completion`."""
    parsed = parse_completion(text)
    iou = _iou_reward(mask_probs, torch.as_tensor(gt_masks))
    return RolloutScore(format=_format_score(parsed), category=_category_score(parsed, sample), iou=iou)


def score_answer(
    sample: AVSample,
    text: str,
    mask_probs: Tensor | None,
    gt_masks: Tensor | np.ndarray,
    *,
    sampled: Sequence[RolloutScore] = (),
    preset: str = "refavs",
) -> RowResult:
    """Score a model's greedy answer to a row, and add the scores of its sampled ones; see `score_completion`."""
    score = score_masks(mask_probs, gt_masks, preset=preset)
    greedy = score_completion(text, mask_probs, gt_masks, sample, preset=preset)
    return RowResult.of_sample(sample, score, preset=preset, greedy=greedy, sampled=sampled)


def _zeros_if_missing(mask_probs: Tensor | None, gt_masks: Tensor) -> Tensor:
    """Return the probabilities; zeros for a missing prediction."""
    return torch.zeros(gt_masks.shape, device=gt_masks.device) if mask_probs is None else mask_probs


def _probs_at_own_size(mask_probs: Tensor, gt_masks: Tensor) -> Tensor:
    height, width = gt_masks.shape[1:]
    return metrics.resize_probs(mask_probs, (height, width))


def _preset_size(gt_masks: Tensor, preset: str) -> tuple[int, int]:
    """Return the (height, width) at which the preset scores a clip."""
    height, width = gt_masks.shape[1:]
    size = find_preset(preset).size
    return (height, width) if size is None else (size, size)


def _iou_reward(mask_probs: Tensor | None, gt_masks: Tensor) -> float:
    """Compute the mask-IoU reward, which is 0 without `[SEG]`, even if empty masks would be right."""
    if mask_probs is None:
        return 0.0
    return metrics.mask_iou(_probs_at_own_size(mask_probs, gt_masks) > MASK_THRESHOLD, gt_masks)


def _f_curve(mask_probs: Tensor, mask_logits: Tensor | None, gt_masks: Tensor, preset: Preset) -> Tensor:
    if not preset.thresholds_logits:
        return metrics.f_measure_curve(mask_probs, gt_masks)
    return metrics.logit_f_measure_curve(torch.logit(mask_probs) if mask_logits is None else mask_logits, gt_masks)


def _format_score(parsed: ParsedCompletion) -> float:
    return float(parsed.has_all_steps and parsed.ends_with_seg and parsed.num_seg == 1)


def _category_score(parsed: ParsedCompletion, sample: AVSample) -> float:
    return float(parsed.category == normalise_category(sample.category))
