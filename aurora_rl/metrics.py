"""Metrics of predicted masks against the truth: pure functions of tensors, used by rewards and evaluation.

Definitions follow the official Ref-AVS script (Wang et al., ECCV 2024) unless a docstring says otherwise.
"""

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

#: Pixels with a probability above this belong to the mask.
MASK_THRESHOLD = 0.5
#: The official script's guard in the union.
_UNION_EPS = 1e-7
_NUM_THRESHOLDS = 255
_BETA_SQUARED = 0.3


@dataclasses.dataclass(frozen=True)
class MaskCounts:
    """Pixel counts of a clip's masks, frame by frame, from which all scores of thresholded masks follow.

    Attributes:
        predicted: (F,) int64, pixels predicted.
        true: (F,) int64, pixels of the truth.
        both: (F,) int64, pixels of both.
        frame_pixels: pixels of a frame.
        masks: the predicted masks and the truth.
    """

    predicted: Tensor
    true: Tensor
    both: Tensor
    frame_pixels: int
    masks: tuple[Tensor, Tensor] | None = dataclasses.field(default=None, repr=False, compare=False)

    def on_cpu(self, pred_masks: Tensor, gt_masks: Tensor) -> "MaskCounts":
        """Copy the counts to main memory in one transfer, as the counts of these copies of the masks."""
        predicted, true, both = torch.stack([self.predicted, self.true, self.both]).cpu()
        return MaskCounts(predicted, true, both, self.frame_pixels, masks=(pred_masks, gt_masks))

    def belong_to(self, pred_masks: Tensor, gt_masks: Tensor) -> bool:
        """Tell whether exactly these tensors were counted, and not tensors computed from them."""
        return self.masks is not None and self.masks[0] is pred_masks and self.masks[1] is gt_masks

    @property
    def union(self) -> Tensor:
        """Pixels of either mask, (F,) int64."""
        return self.predicted + self.true - self.both

    @property
    def region_similarity(self) -> Tensor:
        """J of each frame, (F,) float64; see the function of this name."""
        iou = self.both.double() / (self.union.double() + _UNION_EPS)
        background_share = (self.frame_pixels - self.predicted).double() / self.frame_pixels
        return torch.where(self.true > 0, iou, background_share)

    @property
    def null_s(self) -> float:
        """S of the clip; see the function of this name."""
        return math.sqrt(int(self.predicted.sum()) / (self.frame_pixels * len(self.predicted)))

    @property
    def mask_iou(self) -> float:
        """The mask quality that GRPO rewards; see the function of this name."""
        return float(self.region_similarity.mean()) if self.true.any() else 1.0 - self.null_s


def count_masks(pred_masks: Tensor, gt_masks: Tensor) -> MaskCounts:
    """Count a clip's pixels once, on the device of its masks.

    Args:
        pred_masks: (F, H, W) bool.
        gt_masks: (F, H, W) bool, on the same device.

    Raises:
        ValueError: if the shapes differ or a mask is not bool.
    """
    check_masks(pred_masks, gt_masks)
    return MaskCounts(
        predicted=_pixels_by_frame(pred_masks),
        true=_pixels_by_frame(gt_masks),
        both=_pixels_by_frame(pred_masks & gt_masks),
        frame_pixels=gt_masks[0].numel(),
        masks=(pred_masks, gt_masks),
    )


def _pixels_by_frame(masks: Tensor) -> Tensor:
    """Return (F,) int64, the number of true pixels of (F, H, W) bool masks."""
    if masks.device.type != "cpu":
        return masks.flatten(1).count_nonzero(1)
    # On a CPU, torch takes a hundred times as long to reduce bool along one dimension.
    return torch.tensor([int(np.count_nonzero(frame)) for frame in masks.numpy()])


def region_similarity(pred_masks: Tensor, gt_masks: Tensor) -> Tensor:
    """Compute J of each frame: intersection over union, or the share of predicted background where the truth is empty.

    Args:
        pred_masks: (F, H, W) bool.
        gt_masks: (F, H, W) bool.

    Returns:
        (F,) float64 in [0, 1].

    Raises:
        ValueError: if the shapes differ or a mask is not bool.
    """
    return count_masks(pred_masks, gt_masks).region_similarity


def jaccard(pred_masks: Tensor, gt_masks: Tensor) -> Tensor:
    """Compute J of each frame as DAVIS does: intersection over union, 1 if both masks are empty (Perazzi et al. 2016).

    Args:
        pred_masks: (F, H, W) bool.
        gt_masks: (F, H, W) bool.

    Returns:
        (F,) float64 in [0, 1]; on a frame whose truth is empty 1 or 0.

    Raises:
        ValueError: if the shapes differ or a mask is not bool.
    """
    counts = count_masks(pred_masks, gt_masks)
    return torch.where(counts.union > 0, counts.both.double() / counts.union.double(), 1.0)


def null_s(pred_masks: Tensor) -> float:
    """Compute S of a clip whose truth is empty: sqrt(predicted pixels / all pixels); 0 is best.

    Args:
        pred_masks: (F, H, W) bool.

    Returns:
        S in [0, 1]; a false alarm of 2 % of the pixels gives 0.141.
    """
    _check_mask("pred_masks", pred_masks)
    return math.sqrt(int(_pixels_by_frame(pred_masks).sum()) / pred_masks.numel())


def mask_iou(pred_masks: Tensor, gt_masks: Tensor) -> float:
    """Compute the mask quality that GRPO rewards.

    It is the mean over frames of `region_similarity`, or 1 - S where the truth is empty on all frames. (The authors'
    release gives such a clip its share of background, so that a false alarm of 2 % still earns 0.98.)

    Args:
        pred_masks: (F, H, W) bool.
        gt_masks: (F, H, W) bool.

    Returns:
        A number in [0, 1].
    """
    return count_masks(pred_masks, gt_masks).mask_iou


def mask_place(pred_masks: Tensor) -> tuple[float, float, float] | None:
    """Locate masks, over all frames together.

    Args:
        pred_masks: (F, H, W) bool.

    Returns:
        Mean column of their pixels (0 at the left edge, 1 at the right), mean row (0 at the top) and their share of
        all pixels; None if they are empty.
    """
    _check_mask("pred_masks", pred_masks)
    # Frames are summed first, in bytes, so that coordinates of millions of pixels are never stored.
    bytes_of_frames = [part.view(torch.uint8).sum(0, dtype=torch.uint8) for part in pred_masks.split(255)]
    frames = torch.stack([counts.int() for counts in bytes_of_frames]).sum(0)  # (H, W), frames that hold the pixel
    by_row, by_column = frames.sum(1).double(), frames.sum(0).double()  # exact: far below 2 ** 53
    num_pixels = float(by_row.sum())
    if not num_pixels:
        return None
    return _mean_index(by_column), _mean_index(by_row), num_pixels / pred_masks.numel()


def _mean_index(weights: Tensor) -> float:
    """Return the mean place on an axis of N pixels with these weights (N,): 0 at its start, 1 at its end."""
    indices = torch.arange(len(weights), dtype=torch.float64, device=weights.device)
    return (float((indices * weights).sum() / weights.sum()) + 0.5) / len(weights)


def f_measure_curve(mask_probs: Tensor, gt_masks: Tensor) -> Tensor:
    """Compute F of a clip at each of 255 thresholds, averaged over the frames whose truth is not empty.

    F = (1 + β²)·P·R / (β²·P + R), β² = 0.3. A pixel is predicted where p >= threshold; the thresholds are
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
    low, high = mask_probs.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"mask_probs lies in [{low:.3g}, {high:.3g}], expected [0, 1]: apply a sigmoid to logits")
    return _clip_f_measure_curve(mask_probs, gt_masks)


def logit_f_measure_curve(mask_logits: Tensor, gt_masks: Tensor) -> Tensor:
    """Compute `f_measure_curve` as the authors' release does: the same thresholds, on raw logits.

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
    """Resize predictions to a benchmark's resolution: bilinear on probabilities, no antialiasing.

    It computes in float64: saved probabilities are often levels of 8 bits, so many pixels lie exactly on a threshold.
    In float32, the processor's rounding would put them on one side or the other, and J differ in the fifth digit.

    Args:
        mask_probs: (F, H, W) float, probabilities.
        size: (height, width) in pixels.

    Returns:
        (F, *size) float32.
    """
    _check_three_dims("mask_probs", mask_probs)
    if tuple(mask_probs.shape[1:]) == tuple(size):
        return mask_probs.float()
    frames = mask_probs[:, None].float().double()
    resized = functional.interpolate(frames, size=size, mode="bilinear", align_corners=False, antialias=False)
    return resized[:, 0].float()


def resize_truth(gt_masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize the truth to a benchmark's resolution: bilinear on the 8-bit mask {0, 255}, then > 0, as OpenCV does.

    This is OpenCV's own arithmetic (`resize` of uint8 with INTER_LINEAR), whose rounding decides at the edges: weights
    are multiples of 1 / 2048, and the share of each of the two rows is truncated before both are added.

    Args:
        gt_masks: (F, H, W) bool.
        size: (height, width) in pixels.

    Returns:
        (F, *size) bool; any pixel that a true pixel touches after rounding is true.
    """
    _check_mask("gt_masks", gt_masks)
    if tuple(gt_masks.shape[1:]) == tuple(size):
        return gt_masks
    rows = _opencv_neighbours(gt_masks.shape[1], size[0], gt_masks.device)
    columns = _opencv_neighbours(gt_masks.shape[2], size[1], gt_masks.device)
    # Frame by frame, so that intermediate results stay in the processor's cache.
    return torch.stack([_resize_mask(mask, rows, columns) for mask in gt_masks])


def _resize_mask(mask: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
    """Resize one frame's mask (H, W) bool to the size of its neighbours; see `resize_truth`."""
    size = len(rows[0][0]), len(columns[0][0])
    quarters = torch.zeros(size, dtype=torch.int32, device=mask.device)  # in quarters of a grey level
    for row, row_weight in zip(*rows, strict=True):
        line = sum(mask[row].index_select(1, column) * weight for column, weight in zip(*columns, strict=True))
        quarters += ((255 * line) >> 4) * row_weight[:, None] >> 16
    return quarters >= 2  # OpenCV rounds half a grey level up


def _opencv_neighbours(length: int, new_length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the two old pixels around each new one, (2, N) int64, and their weights of 2048, (2, N) int32."""
    centres = (torch.arange(new_length, dtype=torch.float64) + 0.5) * (length / new_length) - 0.5
    first = centres.floor()
    fraction = (centres - first).float()
    weights = torch.stack([1 - fraction, fraction]).mul(2048).round().int()
    pixels = torch.stack([first, first + 1]).long().clamp(0, length - 1)
    return pixels.to(device), weights.to(device)


def _clip_f_measure_curve(scores: Tensor, gt_masks: Tensor) -> Tensor:
    """Return (255,), the mean over the frames that have a truth, by one histogram per frame instead of 255 passes.

    Scores are compared with the thresholds in float32, as in the definition.
    """
    histograms = _histograms(scores.float(), gt_masks)  # (F, 2, 256)
    histograms = histograms[histograms[:, 1].sum(1) > 0]
    if not len(histograms):
        return torch.zeros(_NUM_THRESHOLDS, dtype=torch.float64, device=scores.device)
    passed = histograms.flip(2).cumsum(2).flip(2).double()  # (F, 2, 256), pixels that pass at least k thresholds
    false_positives, true_positives = passed[:, 0, 1:], passed[:, 1, 1:]  # (F, 255)
    precision = true_positives / (true_positives + false_positives + 1e-20)
    recall = true_positives / passed[:, 1, :1]
    f_measure = (1 + _BETA_SQUARED) * precision * recall / (_BETA_SQUARED * precision + recall)
    return f_measure.nan_to_num(0.0).mean(0)  # 0 / 0 where there is no true positive


def _histograms(scores: Tensor, gt_masks: Tensor) -> Tensor:
    """Return (F, 2, 256): pixels outside and inside the truth, by the number of thresholds that they pass."""
    num_bins = _NUM_THRESHOLDS + 1
    histograms = np.empty((len(scores), 2, num_bins), dtype=np.int64)
    # By numpy and frame by frame, so that intermediate results stay in the processor's cache.
    frames = zip(scores.flatten(1).cpu().numpy(), gt_masks.flatten(1).cpu().numpy(), strict=True)
    for histogram, (frame, truth) in zip(histograms, frames, strict=True):
        passed = _thresholds_passed(frame)  # (H * W,)
        histogram[1] = np.bincount(passed[truth], minlength=num_bins)
        histogram[0] = np.bincount(passed, minlength=num_bins) - histogram[1]
    return torch.from_numpy(histograms).to(scores.device)


def _thresholds_passed(scores: np.ndarray) -> np.ndarray:
    """Count the thresholds, of 255, that are at most the score.

    The thresholds are nearly k / 254, so arithmetic finds the number or one less, and a comparison with the next exact
    threshold decides. A search among the thresholds would take ten times as long.

    Args:
        scores: (N,) float32; a score below 0 passes none.

    Returns:
        (N,) intp in [0, 255].
    """
    thresholds = torch.linspace(0, 1 - 1e-10, _NUM_THRESHOLDS).numpy()  # float32: the last one is 1
    # 0.99 and 253.99 instead of 1 and 254, because rounding must never give one too many.
    passed = (np.clip(scores, -0.003, 1.0) * np.float32(253.99) + np.float32(0.99)).astype(np.intp)
    passed += scores >= thresholds[passed]
    return passed


def check_masks(pred_masks: Tensor, gt_masks: Tensor) -> None:
    """Refuse masks that are not (F, H, W) bool of one shape: others would broadcast into a wrong score.

    Raises:
        ValueError: naming the shape or dtype.
    """
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
