"""What a row's saved masks are, whatever file they come from: see `mask_files` and `coco_masks`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from aurora_rl.data.sample import AVSample

#: Largest number of values in one clip's masks; 10 frames of 4K are 83 million.
MAX_VALUES = 128_000_000


class PredictionError(ValueError):
    """A saved prediction cannot be scored."""


@dataclasses.dataclass(frozen=True)
class PredictedMasks:
    """One clip's masks in memory.

    Attributes:
        mask_probs: probabilities, (F, H, W) float32 in [0, 1].
        mask_logits: logits, (F, H, W) float32; None if probabilities were saved.
    """

    mask_probs: torch.Tensor
    mask_logits: torch.Tensor | None = None


class Prediction(Protocol):
    """One row's saved masks: files, entries of a COCO file, or run lengths from a model's results."""

    @property
    def path(self) -> str:
        """File or folder that holds them."""

    @property
    def fingerprint(self) -> str:
        """Hash that changes if the masks change."""

    def read(self, sample: AVSample) -> PredictedMasks:
        """Read the masks of a row; a ValueError that names their file if they cannot be read."""


@dataclasses.dataclass(frozen=True)
class BadPrediction:
    """A prediction that cannot be read, and why."""

    path: str
    fingerprint: str
    problem: str

    def read(self, sample: AVSample | None = None) -> PredictedMasks:
        """Raise the problem as a PredictionError."""
        raise PredictionError(self.problem)


def add_prediction(rows: dict[int, Prediction], row: int, prediction: Prediction) -> None:
    """Add a row's prediction; if the row has one already, reading it is an error that names both."""
    other = rows.setdefault(row, prediction)
    if other is not prediction:
        problem = f"row {row} has two predictions, {other.path} and {prediction.path}: keep one"
        rows[row] = BadPrediction(other.path, other.fingerprint, problem)


def num_frames_of(sample: AVSample) -> int | None:
    """Return how many frames a row's prediction must have; None if its frames are not known."""
    return len(sample.mask_paths) or sample.num_frames or None


def frame_times(sample: AVSample, num_frames: int) -> list[float]:
    """Return the times of a row's frames in seconds after the first picture."""
    return list(sample.frame_times) or [index / sample.fps for index in range(num_frames)]


def check_count(shape: Sequence[int], path: str) -> None:
    """Refuse masks of no values, or of too many for the memory, by a PredictionError that names their file."""
    count = int(np.prod(shape, dtype=object))
    if not 0 < count <= MAX_VALUES:
        raise PredictionError(
            f"{path} holds masks of shape {tuple(shape)}: expected at least one value, at most {MAX_VALUES}"
        )
