"""Time of computing scores: the F-measure of a clip against 255 passes, and all of Ref-AVSBench's test splits.

    python benchmarks/f_measure.py --num_workers 2 --output out.json

The second part writes as many rows as Ref-AVSBench's test splits have into a temporary folder, ten frames a row, truth
of 1280 x 720 pixels and predictions of 256 x 256 as 8-bit PNG (hard links to a small pool of files), and runs
`aurora-rl evaluate --predictions` on them. `--scale 0.01` takes a hundredth of the rows.
"""

from __future__ import annotations

import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from aurora_rl.assembly.options import OptionParser
from aurora_rl.metrics import f_measure_curve

#: Rows of Ref-AVSBench's test splits.
SPLIT_ROWS = {"test_s": 2288, "test_u": 1656, "test_n": 1028}
NUM_FRAMES = 10
PREDICTION_SIZE = (256, 256)  # (height, width)
TRUTH_SIZE = (720, 1280)
POOL_SIZE = 60  # distinct frames of each kind


def passes_over_thresholds(mask_probs: torch.Tensor, gt_masks: torch.Tensor) -> torch.Tensor:
    """Compute the F-measure (255,) of a clip by its definition: one pass over all frames for each threshold."""
    truth = gt_masks.float()
    curve = []
    for threshold in torch.linspace(0, 1 - 1e-10, 255):
        predicted = (mask_probs >= threshold).float()
        true_positives = (predicted * truth).sum((1, 2))
        precision = true_positives / (predicted.sum((1, 2)) + 1e-20)
        recall = true_positives / (truth.sum((1, 2)) + 1e-20)
        curve.append(torch.nan_to_num(1.3 * precision * recall / (0.3 * precision + recall)).mean())
    return torch.stack(curve)


def compare_f(*, repeats: int) -> dict[str, float]:
    """Time both ways in turn on one clip: their median seconds, their ratio, and the largest difference of a value."""
    gt_masks = torch.from_numpy(np.stack([disc(PREDICTION_SIZE, seed) for seed in range(NUM_FRAMES)]))
    mask_probs = torch.from_numpy(np.stack([soft(mask, seed) for seed, mask in enumerate(gt_masks.numpy())]))
    passes, histograms = [], []
    for _ in range(repeats):
        passes.append(seconds(lambda: passes_over_thresholds(mask_probs, gt_masks)))
        histograms += [seconds(lambda: f_measure_curve(mask_probs, gt_masks)) for _ in range(10)]
    difference = passes_over_thresholds(mask_probs, gt_masks) - f_measure_curve(mask_probs, gt_masks)
    times = statistics.median(passes), statistics.median(histograms)
    return {
        "f_passes_s": times[0],
        "f_histogram_s": times[1],
        "f_ratio": times[0] / times[1],
        "f_difference": float(difference.abs().max()),
    }


def seconds(run: Callable[[], Any]) -> float:
    """Return the seconds that a call takes by the wall clock."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


# ------------------------------------------------------------------------------------------------ a benchmark


def disc(size: tuple[int, int], seed: int) -> np.ndarray:
    """Draw a mask (H, W) bool: an ellipse at a random place in the frame."""
    random = np.random.default_rng(seed)
    rows, columns = np.ogrid[0 : size[0], 0 : size[1]]
    centre, radii = random.uniform(0.2, 0.8, 2) * size, random.uniform(0.05, 0.3, 2) * size
    return ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 < 1


def soft(mask: np.ndarray, seed: int) -> np.ndarray:
    """Make probabilities (H, W) float32 around a mask, with noise, nowhere 0 or 1."""
    noise = np.random.default_rng(seed).normal(size=mask.shape)
    return (1 / (1 + np.exp(-(8 * mask - 4 + 0.7 * noise)))).astype(np.float32)


def write_benchmark(root: Path, *, scale: float) -> int:
    """Write `root`/data and `root`/predictions, and return the number of rows."""
    truth = write_pool(root / "pool" / "truth", lambda seed: disc(TRUTH_SIZE, seed) * np.uint8(255))
    empty = write_pool(root / "pool" / "empty", lambda seed: np.zeros(TRUTH_SIZE, dtype=np.uint8), size=1)
    levels = write_pool(
        root / "pool" / "levels", lambda seed: np.rint(255 * soft(disc(PREDICTION_SIZE, seed), seed)).astype(np.uint8)
    )
    rows = list(table_rows(scale))
    (root / "data").mkdir()
    with (root / "data" / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("vid", "uid", "split", "fid", "exp"), *rows])
    for number, (_, uid, split, fid, _) in enumerate(rows):
        masks = root / "data" / "gt_mask" / uid.rsplit("_", 2)[0] / f"fid_{fid}"
        link(empty if split == "test_n" else truth, masks, number, "{:05d}.png")
        link(levels, root / "predictions" / str(number), number + number % 3, "{}.png")  # a third is right
    return len(rows)


def table_rows(scale: float) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield the rows of metadata.csv, about eight references a clip."""
    for split, count in SPLIT_ROWS.items():
        for index in range(max(1, round(scale * count))):
            category = "null" if split == "test_n" else f"object{index % 48}"
            vid = f"{split.replace('_', '-')}-{index // 8:04d}_0_10000"
            prefix = "null_m-" if split == "test_n" else ""
            yield vid, f"{prefix}{vid}_{category}_{index}", split, str(index % 8), f"The object number {index}."


def write_pool(folder: Path, frame: Callable[[int], np.ndarray], *, size: int = POOL_SIZE) -> list[Path]:
    """Write distinct frames, which rows link to."""
    folder.mkdir(parents=True)
    paths = [folder / f"{seed}.png" for seed in range(size)]
    for seed, path in enumerate(paths):
        Image.fromarray(frame(seed)).save(path)
    return paths


def link(pool: Sequence[Path], folder: Path, number: int, name: str) -> None:
    """Make a row's frames as hard links into the pool; each row starts at another frame."""
    folder.mkdir(parents=True)
    for index in range(NUM_FRAMES):
        os.link(pool[(7 * number + index) % len(pool)], folder / name.format(index))


def score_benchmark(root: Path, *, preset: str, num_workers: int) -> dict[str, float]:
    """Run the command in its own processes; return wall seconds, CPU seconds and the peak of the largest process."""
    command = [sys.executable, "-m", "aurora_rl.cli", "evaluate", "--predictions", str(root / "predictions")]
    command += ["--data_root", str(root / "data"), "--preset", preset, "--output_dir", str(root / "out")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = seconds(lambda: subprocess.run([*command, "--num_workers", str(num_workers)], check=True))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall_s": wall,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_gb": after.ru_maxrss * 1024 / 1e9,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print the numbers as JSON."""
    parser = OptionParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="number of times that the 255 passes are timed")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the benchmark's rows; 0 leaves it out")
    parser.add_argument("--preset", default="refavs", help="rules of scoring in the second part")
    parser.add_argument("--num_workers", type=int, default=2, help="number of processes in the second part")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers, to write as well")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    numbers: dict[str, Any] = compare_f(repeats=args.repeats)
    if args.scale:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            numbers |= {"rows": write_benchmark(root, scale=args.scale), "preset": args.preset}
            numbers |= score_benchmark(root, preset=args.preset, num_workers=args.num_workers)
    print(json.dumps(numbers, indent=2))
    if args.output:
        args.output.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
