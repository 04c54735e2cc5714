"""The presets as their definitions read, pixel by pixel and threshold by threshold: what ours is held against.

Shares no code with the package: numpy, and OpenCV where the definition is OpenCV's.
"""

import math

import cv2
import numpy as np

SIZES = {"refavs": 256, "avsbench": 224, "aurora": None, "davis": None}
J_THRESHOLDS = {"refavs": 0.4, "avsbench": 0.5, "aurora": 0.5, "davis": 0.5}
THRESHOLDS = [np.float32(k * ((1 - 1e-10) / 254)) for k in range(255)]


def direct_scores(probs: np.ndarray, truth: np.ndarray, preset: str) -> dict[str, float]:
    """J, F and S of a clip: probabilities (F, h, w) float32, truth (F, H, W) bool."""
    height, width = (SIZES[preset], SIZES[preset]) if SIZES[preset] else truth.shape[1:]
    probs = np.stack([bilinear(frame, height, width) for frame in probs])
    truth = np.stack([resize_truth(frame, height, width) for frame in truth])
    masks = probs > np.float32(J_THRESHOLDS[preset])
    marked = (probs > np.float32(0.5)).mean()
    return {
        "J": float(np.mean([direct_j(m, t, preset) for m, t in zip(masks, truth, strict=True)])),
        "F": direct_davis_f(masks, truth) if preset == "davis" else direct_f(probs, truth, preset),
        "S": math.sqrt(marked),
    }


def direct_j(mask: np.ndarray, truth: np.ndarray, preset: str) -> float:
    union, both = (mask | truth).sum(), (mask & truth).sum()
    if preset == "davis":
        return 1.0 if union == 0 else both / union
    if not truth.any():
        return (~mask).sum() / mask.size
    return both / (union + 1e-7)


def direct_f(probs: np.ndarray, truth: np.ndarray, preset: str) -> float:
    with np.errstate(divide="ignore"):
        scores = np.log(probs / (1 - probs)) if preset == "aurora" else probs
    frames = [(s, t) for s, t in zip(scores, truth, strict=True) if t.any()]
    if not frames:
        return 0.0
    curves = [[f_at(s >= threshold, t) for threshold in THRESHOLDS] for s, t in frames]
    return float(np.mean(curves, axis=0).max())


def f_at(predicted: np.ndarray, truth: np.ndarray) -> float:
    both = (predicted & truth).sum()
    if both == 0:
        return 0.0
    precision, recall = both / predicted.sum(), both / truth.sum()
    return 1.3 * precision * recall / (0.3 * precision + recall)


def direct_davis_f(masks: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([davis_f(m, t) for m, t in zip(masks, truth, strict=True)]))


def davis_f(mask: np.ndarray, truth: np.ndarray) -> float:
    """As the DAVIS toolkit writes it: outlines, dilated by a disk with OpenCV."""
    radius = int(np.ceil(0.008 * np.linalg.norm(mask.shape)))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.uint8)
    outline, true_outline = seg2bmap(mask), seg2bmap(truth)
    near_truth = cv2.dilate(true_outline.astype(np.uint8), disk) > 0
    near_mask = cv2.dilate(outline.astype(np.uint8), disk) > 0
    count, true_count = outline.sum(), true_outline.sum()
    if count == 0 and true_count == 0:
        return 1.0
    if count == 0 or true_count == 0:
        return 0.0
    precision, recall = (outline & near_truth).sum() / count, (true_outline & near_mask).sum() / true_count
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def seg2bmap(seg: np.ndarray) -> np.ndarray:
    east, south, south_east = np.zeros_like(seg), np.zeros_like(seg), np.zeros_like(seg)
    east[:, :-1] = seg[:, 1:]
    south[:-1, :] = seg[1:, :]
    south_east[:-1, :-1] = seg[1:, 1:]
    outline = seg ^ east | seg ^ south | seg ^ south_east
    outline[-1, :] = seg[-1, :] ^ east[-1, :]
    outline[:, -1] = seg[:, -1] ^ south[:, -1]
    outline[-1, -1] = 0
    return outline


def resize_truth(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    return cv2.resize(mask.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_LINEAR) > 0


def bilinear(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Half-pixel centres, no antialiasing; float32 as the network's output."""
    if frame.shape == (height, width):
        return frame
    rows, row_weights = neighbours(frame.shape[0], height)
    columns, column_weights = neighbours(frame.shape[1], width)
    upper, lower = (frame[row][:, columns[0]] * (1 - column_weights) + frame[row][:, columns[1]] * column_weights
                    for row in rows)  # fmt: skip
    return (upper * (1 - row_weights[:, None]) + lower * row_weights[:, None]).astype(np.float32)


def neighbours(length: int, new_length: int) -> tuple[np.ndarray, np.ndarray]:
    centres = np.maximum((np.arange(new_length) + 0.5) * (length / new_length) - 0.5, 0)
    first = np.minimum(np.floor(centres).astype(int), length - 1)
    return np.stack([first, np.minimum(first + 1, length - 1)]), centres - first
