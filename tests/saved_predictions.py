"""A small benchmark in Ref-AVSBench's layout, truth alone, and predictions of it in every form that is read."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

FRAMES, HEIGHT, WIDTH = 3, 20, 24
#: vid, uid, split, fid, exp; the row is the index. Row 9 ships no masks.
ROWS = [
    ("t0", "t0_drum_1", "train", "0", "The drum."),
    ("s0", "s0_drum_1", "test_s", "0", "The drum."),
    ("s0", "s0_cat_2", "test_s", "1", "The cat."),
    ("s1", "s1_drum_1", "test_s", "0", "The loud drum."),
    ("u0", "u0_drum_1", "test_u", "0", "The drum."),
    ("u0", "u0_tabla_2", "test_u", "1", "The tabla."),
    ("u0", "u0_tabla_2", "test_u", "1", "The tabla."),  # an exact duplicate, as the official table has some
    ("x", "x_cat_1", "TODO", "0", "The cat."),
    ("n0", "null_m-n0_null_1", "test_n", "0", "The sounding object."),
    ("n1", "null_m-n1_null_1", "test_n", "0", "The sounding object."),
]
WITHOUT_MASKS = 9


def write_truth(root: Path) -> dict[int, np.ndarray]:
    """metadata.csv and gt_mask/; returns each row's truth (F, H, W) bool."""
    root.mkdir(parents=True)
    with (root / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("vid", "uid", "split", "fid", "exp"), *ROWS])
    truth = {row: true_masks(row) for row in range(len(ROWS))}
    for row, masks in truth.items():
        _, uid, _, fid, _ = ROWS[row]
        folder = root / "gt_mask" / uid.rsplit("_", 2)[0] / f"fid_{fid}"
        folder.mkdir(parents=True, exist_ok=True)
        for index, mask in enumerate(masks):
            if row != WITHOUT_MASKS:
                Image.fromarray(mask * np.uint8(255)).save(folder / f"{index:05d}.png")
    return truth


def true_masks(row: int) -> np.ndarray:
    """(F, H, W) bool: a rectangle, empty for a null row; the duplicate rows 5 and 6 share theirs."""
    masks = np.zeros((FRAMES, HEIGHT, WIDTH), dtype=bool)
    if "_null_" not in ROWS[row][1]:
        start = 2 + (5 if row == 6 else row)
        masks[:, start : start + 8, 4:16] = True
        masks[1] &= row != 3  # a frame with nothing to find
    return masks


def levels(row: int) -> np.ndarray:
    """(F, H, W) uint8: a prediction as grey levels, mostly right."""
    noise = np.random.default_rng(row).integers(0, 120, (FRAMES, HEIGHT, WIDTH))
    return np.where(true_masks(row), 255 - noise, noise).astype(np.uint8)


def write_pngs(folder: Path, rows: dict[int, np.ndarray]) -> Path:
    for row, frames in rows.items():
        (folder / str(row)).mkdir(parents=True, exist_ok=True)
        for index, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / str(row) / f"{index}.png")
    return folder


def write_npzs(folder: Path, rows: dict[int, np.ndarray], *, name: str = "probs") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for row, values in rows.items():
        np.savez_compressed(folder / f"{row}.npz", **{name: values})
    return folder


def rows_of(*splits: str) -> list[int]:
    return [row for row, (_, _, split, _, _) in enumerate(ROWS) if split in splits]
