"""Boundary F, as the DAVIS benchmark computes it (Perazzi et al., CVPR 2016; Pont-Tuset et al. 2017).

This is not the F of `metrics`, which compares areas at 255 thresholds; this one compares the outlines of two masks.
It is the harmonic mean of two shares: of the predicted outline that lies near the true one, and the other way round.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from aurora_rl.metrics import check_masks

#: Largest distance at which two outlines still agree, as a share of the frame's diagonal.
TOLERANCE = 0.008


def boundary_f_measure(pred_masks: Tensor, gt_masks: Tensor) -> Tensor:
    """Compute F of each frame: 2 P R / (P + R).

    P is the share of the predicted outline that lies near the true one, R the share of the true outline that lies near
    the predicted one; near is within ceil(0.008 · diagonal) pixels. F is 1 where neither mask has an outline, 0 where
    only one has.

    Args:
        pred_masks: (F, H, W) bool.
        gt_masks: (F, H, W) bool.

    Returns:
        (F,) float64 in [0, 1].

    Raises:
        ValueError: if the shapes differ or a mask is not bool.
    """
    check_masks(pred_masks, gt_masks)
    radius = math.ceil(TOLERANCE * math.hypot(*pred_masks.shape[1:]))
    pred_outlines, gt_outlines = outlines(pred_masks), outlines(gt_masks)
    precision = _share_near(pred_outlines, gt_outlines, radius)
    recall = _share_near(gt_outlines, pred_outlines, radius)
    # DAVIS gives 0 where one outline is missing, by a precision or recall of 0.
    return (2 * precision * recall / (precision + recall)).nan_to_num(0.0)


def outlines(masks: Tensor) -> Tensor:
    """Find the pixels that differ from their neighbour below, to the right, or both (DAVIS's `seg2bmap`).

    Args:
        masks: (F, H, W) bool.

    Returns:
        (F, H, W) bool. Pixels outside the frame count as equal to those at its edge, so the edge makes no outline.
    """
    below = torch.cat([masks[:, 1:], masks[:, -1:]], dim=1)
    right, diagonal = (torch.cat([m[:, :, 1:], m[:, :, -1:]], dim=2) for m in (masks, below))
    return (masks ^ right) | (masks ^ below) | (masks ^ diagonal)


def _share_near(outlines: Tensor, others: Tensor, radius: int) -> Tensor:
    """Return (F,), the share of each frame's outline pixels with a pixel of the other outline within the radius.

    By DAVIS's convention it is 1 for a frame without outline pixels, and 0 where only the other outline is missing.
    """
    frames, rows, columns = outlines.nonzero(as_tuple=True)
    near = _are_near(frames, rows, columns, others, radius)
    counts = outlines.sum((1, 2)).double()
    num_near = torch.zeros_like(counts).index_add_(0, frames, near.double())
    return torch.where(counts > 0, num_near / counts, 1.0)


def _are_near(frames: Tensor, rows: Tensor, columns: Tensor, others: Tensor, radius: int) -> Tensor:
    """Tell whether a disk around each pixel holds a pixel of `others`.

    DAVIS dilates the other outline; here the rows of the disk are counted, which gives the same.
    """
    # (F, H + 2 r, W + 2 r + 1): in each row, the number of pixels up to a column, after a first column of zeros.
    sums = functional.pad(others, (radius + 1, radius, radius, radius)).cumsum(2, dtype=torch.int32)
    near = torch.zeros_like(rows, dtype=torch.bool)
    for offset in range(-radius, radius + 1):
        half = math.isqrt(radius**2 - offset**2)  # half the width of the disk's row, in pixels
        y, x = rows + radius + offset, columns + radius
        near |= sums[frames, y, x + 1 + half] > sums[frames, y, x - half]
    return near
