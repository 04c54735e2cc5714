"""Tracks out of what a segmenter of pictures finds on each frame: instances that overlap from frame to frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from aurora_rl.agents.investigation import Segmentation

#: IoU with the mask that a track had last, from which an instance continues it.
LINK_IOU = 0.1
#: IoU with a more certain instance of the same frame, from which one is that instance once more.
DUPLICATE_IOU = 0.7


@dataclasses.dataclass(frozen=True)
class Instances:
    """What was found on one frame.

    Attributes:
        masks: (K, H, W) bool, possibly none; the most certain first.
        scores: (K,) how certain each is, in [0, 1].
    """

    masks: np.ndarray
    scores: np.ndarray


@dataclasses.dataclass
class _Track:
    masks: np.ndarray  # (F, H, W)
    last: np.ndarray  # (H, W), the mask where it was visible last
    scores: list[float]


def link_instances(frames: Sequence[Instances], *, most: int) -> list[Segmentation]:
    """Join instances of frames into tracks, greedily by IoU with the mask that each track had last.

    Args:
        frames: what was found on each of F frames.
        most: largest number of tracks; those with the largest sums of scores are kept, and come first.

    Returns:
        Tracks with masks (F, H, W) and the score of their most certain instance.
    """
    tracks: list[_Track] = []
    for at, found in enumerate(frames):
        for mask, score, track in _assign(found, tracks):
            if track is None:
                track = _Track(np.zeros((len(frames), *mask.shape), bool), mask, [])
                tracks.append(track)
            track.masks[at] = track.last = mask
            track.scores.append(score)
    tracks.sort(key=lambda track: -sum(track.scores))
    return [Segmentation(track.masks, max(track.scores)) for track in tracks[:most]]


def _assign(found: Instances, tracks: Sequence[_Track]) -> list[tuple[np.ndarray, float, _Track | None]]:
    """Return the distinct instances of a frame, each with the track that it continues, at most one a track."""
    kept: list[int] = []
    for number, mask in enumerate(found.masks):
        if mask.any() and all(_iou(mask, found.masks[other]) < DUPLICATE_IOU for other in kept):
            kept.append(number)
    pairs = [
        (_iou(found.masks[number], track.last), number, place) for number in kept for place, track in enumerate(tracks)
    ]
    taken: dict[int, int] = {}
    for overlap, number, place in sorted(pairs, key=lambda pair: -pair[0]):
        if overlap >= LINK_IOU and number not in taken and place not in taken.values():
            taken[number] = place
    return [
        (found.masks[number], float(found.scores[number]), tracks[taken[number]] if number in taken else None)
        for number in kept
    ]


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 0.0
