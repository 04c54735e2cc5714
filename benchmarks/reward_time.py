"""Processor time that the masks of one completion take from the decoder to the rewards.

    python benchmarks/reward_time.py --output out.json

Both ways run in turn in one process, on the same logits: `before`, where every row became probabilities and was
compared with the truth once for the curves and once for the reward, and `now`. They use one thread, which is what
`accelerate launch` gives each of several processes. The logits are in main memory here; a GPU would threshold and
count them, so that only one byte a pixel is copied.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from aurora_rl.assembly.options import OptionParser
from aurora_rl.models.heads.masks import mask_columns
from benchmarks.f_measure import disc
from reward_fns.mask_iou import mask_iou_reward
from reward_fns.reasoning_consistency import reasoning_consistency_reward

#: Frames, height and width in the Ref-AVSBench recipe.
SHAPE = (10, 720, 1280)
#: Goal: processor seconds of a completion.
GOAL_S = 0.05
_CHAIN = "Look: I see a drum.\nListen: I hear a drum.\nRead: on the left.\nAnswer: the target is the drum. It is [SEG]."


def before(mask_logits: torch.Tensor, gt_masks: torch.Tensor) -> tuple[float, float]:
    """Compute the mask IoU twice, and the place of the mask from all coordinates."""
    pred_masks = mask_logits.float().cpu().sigmoid() > 0.5
    reward = [_iou_by_sums(pred_masks, gt_masks) for _ in ("for the curves", "the reward")][-1]
    _, rows, columns = pred_masks.nonzero(as_tuple=True)
    return reward, float(columns.double().mean() + rows.double().mean())


def _iou_by_sums(pred_masks: torch.Tensor, gt_masks: torch.Tensor) -> float:
    both = (pred_masks & gt_masks).sum((1, 2)).double()
    union = (pred_masks | gt_masks).sum((1, 2)).double()
    background_share = (~pred_masks).sum((1, 2)).double() / pred_masks[0].numel()
    iou = torch.where(gt_masks.any(2).any(1), both / (union + 1e-7), background_share)
    return float(iou.mean())


def now(mask_logits: torch.Tensor, gt_masks: torch.Tensor) -> tuple[float, float]:
    """Compute the trainer's columns of the logits, the mask IoU of the curves, and two rewards that read it."""
    entries = mask_columns(mask_logits, gt_masks, gt_masks)
    columns: dict[str, Any] = {name: [entry] for name, entry in entries.items()} | {"gt_masks": [gt_masks]}
    [reward] = mask_iou_reward([""], [""], **columns)
    assert reward is not None and reward == entries["mask_counts"].mask_iou
    reasoning: dict[str, Any] = {"reference": ["the one on the left"], "loudness_dbfs": [-20.0]}
    [consistency] = reasoning_consistency_reward([""], [_CHAIN], **reasoning, **columns)
    assert consistency is not None
    return reward, consistency


def cpu_seconds(run: Callable[[], Any]) -> float:
    """Return the processor seconds of a call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(shape: tuple[int, int, int], *, repeats: int) -> dict[str, float]:
    """Return the median processor seconds of a completion by each way, their ratio, and the rewards' difference."""
    gt_masks = torch.stack([torch.from_numpy(disc(shape[1:], seed)) for seed in range(shape[0])])
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mask_logits = noise + 2.0 * gt_masks - 1.0
    times: dict[str, list[float]] = {"before": [], "now": []}
    for _ in range(repeats):
        for name, way in (("before", before), ("now", now)):
            times[name].append(cpu_seconds(lambda way=way: way(mask_logits, gt_masks)))  # type: ignore[misc]
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "before_s": medians["before"],
        "now_s": medians["now"],
        "ratio": medians["before"] / max(medians["now"], 1e-9),
        "difference": abs(before(mask_logits, gt_masks)[0] - now(mask_logits, gt_masks)[0]),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the numbers, and write them as JSON."""
    parser = OptionParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="number of turns of each way")
    parser.add_argument(
        "--shape",
        type=int,
        nargs=3,
        default=SHAPE,
        metavar=("FRAMES", "HEIGHT", "WIDTH"),
        help="shape of a clip's masks",
    )
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    args = parser.parse_args(argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        numbers = measure(tuple(args.shape), repeats=args.repeats)
    finally:
        torch.set_num_threads(threads)
    print(f"CPU seconds a completion: before {numbers['before_s']:.4f}, now {numbers['now_s']:.4f}, goal {GOAL_S}")
    print(f"{numbers['ratio']:.1f} times less; the reward differs by {numbers['difference']:.1e}")
    if args.output:
        args.output.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
