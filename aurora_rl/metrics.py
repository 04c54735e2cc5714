"""How well predicted masks cover the truth. Pure functions of tensors; rewards and evaluation both use them.

Definitions follow the official Ref-AVS script (Wang et al., ECCV 2024) unless a docstring says otherwise.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

#: The official script's guard in the union.
_UNION_EPS = 1e-7
_NUM_THRESHOLDS = 255
_BETA_SQUARED = 0.3


def region_similarity(pred_masks: Tensor, gt_masks: Tensor) -> Tensor:
    """J of each frame: intersection over union; on a frame whose truth is empty, the share of background predicted.

    Args:
        pred_masks: (F, H, W) bool.
        gt_masks: (F, H, W) bool.

    Returns:
        (F,) float64 in [0, 1].

    Raises:
        ValueError: if the shapes differ or a mask is not bool.
    """
    _check_masks(pred_masks, gt_masks)
    intersection = (pred_masks & gt_masks).sum((1, 2)).double()  # (F,)
    union = (pred_masks | gt_masks).sum((1, 2)).double()  # (F,)
    background_share = (~pred_masks).sum((1, 2)).double() / pred_masks[0].numel()  # (F,)
    return torch.where(gt_masks.any(2).any(1), intersection / (union + _UNION_EPS), background_share)


def null_s(pred_masks: Tensor) -> float:
    """S of a clip whose truth is empty: sqrt(predicted pixels / all pixels), 0 being best.

    Args:
        pred_masks: (F, H, W) bool.

    Returns:
        S in [0, 1]; a false alarm of 2 % of the pixels gives 0.141.
    """
    _check_mask("pred_masks", pred_masks)
    return math.sqrt(int(pred_masks.sum()) / pred_masks.numel())


def mask_iou(pred_masks: Tensor, gt_masks: Tensor) -> float:
    """The mask quality that GRPO rewards.

    Mean over frames of `region_similarity`; 1 - S where the truth is empty on all frames. (The authors' release
    gives such a clip its share of background, so that a false alarm of 2 % still earns 0.98.)

    Args:
        pred_masks: (F, H, W) bool.
        gt_masks: (F, H, W) bool.

    Returns:
        A number in [0, 1].
    """
    _check_masks(pred_masks, gt_masks)
    if not gt_masks.any():
        return 1.0 - null_s(pred_masks)
    return float(region_similarity(pred_masks, gt_masks).mean())


def f_measure_curve(mask_probs: Tensor, gt_masks: Tensor) -> Tensor:
    """F of a clip at each of 255 thresholds, averaged over the frames whose truth is not empty.

    F = (1 + β²)·P·R / (β²·P + R), β² = 0.3, a pixel being predicted where p >= threshold, thresholds
    linspace(0, 1 - 1e-10, 255). The benchmark's F is the maximum of the curve averaged over clips.

    Args:
        mask_probs: (F, H, W) float, probabilities. Raw logits are refused: the authors' release thresholds them
            and so scores another quantity (preset `aurora` of the evaluation rescales them first).
        gt_masks: (F, H, W) bool.

    Returns:
        (255,) float64 in [0, 1]; zeros if the truth is empty on all frames.

    Raises:
        ValueError: if the shapes differ or `mask_probs` leaves [0, 1].
    """
    _check_same_shape("mask_probs", mask_probs, gt_masks)
    _check_probabilities(mask_probs)
    return _clip_f_measure_curve(mask_probs, gt_masks)


def logit_f_measure_curve(mask_logits: Tensor, gt_masks: Tensor) -> Tensor:
    """`f_measure_curve` as the authors' release computes it: the same thresholds, on raw logits.

    Args:
        mask_logits: (F, H, W) float, logits.
        gt_masks: (F, H, W) bool.

    Returns:
        (255,) float64 in [0, 1]; zeros if the truth is empty on all frames.

    Raises:
        ValueError: if the shapes differ or a logit is NaN.
    """
    _check_same_shape("mask_logits", mask_logits, gt_masks)
    if mask_logits.isnan().any():
        raise ValueError("mask_logits holds NaN: the model diverged or the probabilities it came from leave [0, 1]")
    return _clip_f_measure_curve(mask_logits, gt_masks)


def resize_probs(mask_probs: Tensor, size: tuple[int, int]) -> Tensor:
    """Predictions at a benchmark's resolution: bilinear on probabilities, no antialiasing.

    Args:
        mask_probs: (F, H, W) float, probabilities.
        size: (height, width) in pixels.

    Returns:
        (F, *size) float32.
    """
    _check_three_dims("mask_probs", mask_probs)
    return _bilinear(mask_probs.float(), size)


def resize_truth(gt_masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Truth at a benchmark's resolution: bilinear on the 8-bit mask {0, 255}, then > 0, as OpenCV does it.

    Args:
        gt_masks: (F, H, W) bool.
        size: (height, width) in pixels.

    Returns:
        (F, *size) bool; any pixel that a true pixel touches after rounding is true.
    """
    _check_mask("gt_masks", gt_masks)
    if tuple(gt_masks.shape[1:]) == tuple(size):
        return gt_masks
    return _bilinear(gt_masks.float() * 255.0, size).round() > 0


def _bilinear(frames: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(frames.shape[1:]) == tuple(size):
        return frames
    return functional.interpolate(frames[:, None], size=size, mode="bilinear", align_corners=False, antialias=False)[
        :, 0
    ]


def _clip_f_measure_curve(scores: Tensor, gt_masks: Tensor) -> Tensor:
    """(255,) mean over the frames that have a truth."""
    frames = gt_masks.any(2).any(1)  # (F,)
    if not frames.any():
        return torch.zeros(_NUM_THRESHOLDS, dtype=torch.float64, device=scores.device)
    return _f_measure_curves(scores[frames], gt_masks[frames]).mean(0)


def _f_measure_curves(scores: Tensor, gt_masks: Tensor) -> Tensor:
    """(F, 255) from one histogram per frame instead of 255 passes; comparisons in float32 as in the definition."""
    thresholds = torch.linspace(0, 1 - 1e-10, _NUM_THRESHOLDS, device=scores.device)  # float32: the last one is 1
    num_passed = torch.bucketize(scores.float().flatten(1), thresholds, right=True)  # (F, HW) thresholds <= score
    truth = gt_masks.flatten(1)  # (F, HW)
    predicted = _count_at_least(num_passed, torch.ones_like(truth))  # (F, 255)
    true_positives = _count_at_least(num_passed, truth)  # (F, 255)
    precision = true_positives / (predicted + 1e-20)
    recall = true_positives / truth.sum(1, keepdim=True)
    f_measure = (1 + _BETA_SQUARED) * precision * recall / (_BETA_SQUARED * precision + recall)
    return f_measure.nan_to_num(0.0)  # no true positive: 0 / 0


def _count_at_least(num_passed: Tensor, weights: Tensor) -> Tensor:
    """Number of weighted pixels that pass each threshold, (F, HW) -> (F, 255) float64."""
    histogram = num_passed.new_zeros(len(num_passed), _NUM_THRESHOLDS + 1)
    histogram.scatter_add_(1, num_passed, weights.to(num_passed.dtype))
    return histogram.flip(1).cumsum(1).flip(1)[:, 1:].double()


def _check_masks(pred_masks: Tensor, gt_masks: Tensor) -> None:
    _check_mask("pred_masks", pred_masks)
    _check_mask("gt_masks", gt_masks)
    _check_same_shape("pred_masks", pred_masks, gt_masks)


def _check_mask(name: str, masks: Tensor) -> None:
    _check_three_dims(name, masks)
    if masks.dtype != torch.bool:
        raise ValueError(f"{name} is {masks.dtype}, expected bool: threshold probabilities or logits first")


def _check_same_shape(name: str, values: Tensor, gt_masks: Tensor) -> None:
    # (F, H, W) against (1, H, W) would broadcast silently into a wrong score.
    _check_three_dims(name, values)
    _check_mask("gt_masks", gt_masks)
    if values.shape != gt_masks.shape:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}, gt_masks {tuple(gt_masks.shape)}: both must be the same (F, H, W)"
        )


def _check_three_dims(name: str, values: Tensor) -> None:
    if values.ndim != 3 or not values.numel():
        raise ValueError(f"{name} has shape {tuple(values.shape)}, expected a non-empty (F, H, W)")


def _check_probabilities(mask_probs: Tensor) -> None:
    low, high = mask_probs.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"mask_probs lies in [{low:.3g}, {high:.3g}], expected [0, 1]: apply a sigmoid to logits")
