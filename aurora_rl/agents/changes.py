"""What the checks have changed: rows whose masks they mended, and rows whose masks they broke, by the truth.

The agents never see it; it is read when all rows have ended.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from aurora_rl.data.media import read_masks
from aurora_rl.data.sample import AVSample
from aurora_rl.metrics import mask_iou

logger = logging.getLogger(__name__)

#: IoU from which masks count as right.
RIGHT_IOU = 0.5
#: What became of a row, by whether the masks of its first phrase and of its end are right.
CHANGES = {
    (True, True): "right at first and at the end",
    (False, True): "mended",
    (True, False): "broken",
    (False, False): "wrong at first and at the end",
}


def count_changes(samples: Iterable[AVSample], *, first: Path, last: Path) -> dict[str, int]:
    """Count what became of rows; those without truth, or whose truth cannot be read, are left out.

    Args:
        samples: rows that have both masks.
        first: folder of the masks of each row's first phrase, <row>.npz with `masks` (F, H, W).
        last: folder of the masks of each row's end.
    """
    found: Counter[str] = Counter()
    for row in samples:
        if row.has_gt_masks:
            try:
                found[CHANGES[_is_right(row, first), _is_right(row, last)]] += 1
            except (OSError, ValueError) as error:  # MediaError, or masks and truth of two sizes
                logger.warning("sample %s is left out of the changes: %s", row.key, error)
    return {name: found[name] for name in CHANGES.values()}


def _is_right(sample: AVSample, folder: Path) -> bool:
    with np.load(folder / f"{sample.row}.npz") as file:
        masks = file["masks"]
    frames = sample.annotated_frames
    masks = masks if frames is None else masks[list(frames)]
    paths = [path for path in sample.mask_paths if path]
    truth = read_masks(paths) if paths else np.zeros_like(masks)
    return mask_iou(torch.from_numpy(masks), torch.from_numpy(truth)) >= RIGHT_IOU
