"""Time of the rewards of a batch, one function after the other and in threads.

    python benchmarks/reward_threads.py --output out.json

A batch of GRPO has 128 completions, each with ten masks of 480 x 854 pixels, and the columns that the trainer hands to
rewards. Beside the shipped rewards there is the one of `reward_fns/README.md` that compares neighbouring masks, as one
that computes on pixels. `in turn` asks one function after the other; `functions` gives each a thread; `rows` cuts the
batch into as many parts as there are threads. The ways run in turn, on torch's one thread; the table has the fastest
round of each, and its processor seconds, which are more than its wall-clock seconds where threads work at once.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from aurora_rl.assembly.options import OptionParser
from aurora_rl.metrics import count_masks
from aurora_rl.tasks.completions import parse_completion
from benchmarks.f_measure import disc
from benchmarks.timing import Seconds, now
from reward_fns.category import category_reward
from reward_fns.format import format_reward
from reward_fns.mask_iou import mask_iou_reward
from reward_fns.perception import perception_reward
from reward_fns.reasoning_consistency import reasoning_consistency_reward

Reward = Callable[..., Sequence[float | None]]

#: Completions of a group.
GROUP = 8
#: Frames, height and width of a clip's masks.
SHAPE = (10, 480, 854)
CHAIN = "Look: I see a drum.\nListen: I hear a drum.\nRead: on the left.\nAnswer: the target is the drum. It is [SEG]."


def neighbour_reward(prompts: Any, completions: Any, *, pred_masks: Sequence[torch.Tensor], **_: Any) -> list[float]:
    """Return the mean IoU of consecutive frames' predicted masks, as in `reward_fns/README.md`."""
    rewards = []
    for masks in pred_masks:
        before, after = masks[:-1], masks[1:]
        intersection, union = (before & after).sum((1, 2)), (before | after).sum((1, 2))
        rewards.append(torch.where(union > 0, intersection / union.clamp(min=1), 1.0).mean().item())
    return rewards


SHIPPED: dict[str, Reward] = {
    "mask_iou": mask_iou_reward,
    "category": category_reward,
    "format": format_reward,
    "reasoning_consistency": reasoning_consistency_reward,
    "perception": perception_reward,
}
REWARDS = SHIPPED | {"neighbour (README)": neighbour_reward}


def columns_of(num_rows: int, shape: tuple[int, int, int]) -> dict[str, list[Any]]:
    """Return the columns of a batch whose groups have a truth of their own, and predictions off by some pixels."""
    columns: dict[str, list[Any]] = {name: [] for name in ("pred_masks", "gt_masks", "mask_counts")}
    for row in range(num_rows):
        if row % GROUP == 0:
            truth = torch.from_numpy(disc(shape[1:], row)).expand(shape).clone()
        predicted = truth.roll(row % GROUP, dims=2)
        columns["pred_masks"].append(predicted)
        columns["gt_masks"].append(truth)
        columns["mask_counts"].append(count_masks(predicted, truth))
    texts = [CHAIN] * num_rows
    return columns | {
        "prompts": [""] * num_rows,
        "completions": texts,
        "answers": [parse_completion(text) for text in texts],
        "category": ["drum"] * num_rows,
        "reference": ["the one on the left"] * num_rows,
        "loudness_dbfs": [-20.0] * num_rows,
        "seen": [["drum", "bell"]] * num_rows,
        "heard": [["drum"]] * num_rows,
    }


def in_turn(rewards: Mapping[str, Reward], columns: Mapping[str, list[Any]], _: ThreadPoolExecutor) -> list[Any]:
    """Ask one function after the other, as TRL does."""
    return [list(func(**columns)) for func in rewards.values()]


def functions(rewards: Mapping[str, Reward], columns: Mapping[str, list[Any]], pool: ThreadPoolExecutor) -> list[Any]:
    """Ask each function in a thread."""
    asked = [pool.submit(func, **columns) for func in rewards.values()]
    return [list(each.result()) for each in asked]


def rows(rewards: Mapping[str, Reward], columns: Mapping[str, list[Any]], pool: ThreadPoolExecutor) -> list[Any]:
    """Ask one function after the other, each about equal parts of the batch in threads."""
    size = -(-len(columns["completions"]) // pool._max_workers)
    starts = range(0, len(columns["completions"]), size)
    parts = [{name: column[start : start + size] for name, column in columns.items()} for start in starts]
    return [list(itertools.chain(*pool.map(lambda part, func=func: func(**part), parts))) for func in rewards.values()]


WAYS = {"in turn": in_turn, "functions": functions, "rows": rows}


def measure(
    rewards: Mapping[str, Reward], columns: Mapping[str, list[Any]], ways: Sequence[str], *, threads: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Return the fastest round's wall-clock and processor seconds of each way; the rewards are the same in all."""
    fastest: dict[str, Seconds] = {}
    with ThreadPoolExecutor(threads) as pool:
        expected = in_turn(rewards, columns, pool)
        for _ in range(rounds):
            for name in ways:
                start = now()
                found = WAYS[name](rewards, columns, pool)
                spent = now() - start
                assert found == expected
                fastest[name] = min(fastest.get(name, spent), spent, key=lambda seconds: seconds.wall)
    return {name: {"wall_s": seconds.wall, "cpu_s": seconds.cpu} for name, seconds in fastest.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write the numbers as JSON."""
    parser = OptionParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=128, help="number of completions of the batch")
    parser.add_argument("--threads", type=int, default=2, help="parts of a batch, each in a thread of its own")
    parser.add_argument("--rounds", type=int, default=9, help="number of turns of each way")
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
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        columns = columns_of(args.rows, tuple(args.shape))
        options = {"threads": args.threads, "rounds": args.rounds}
        numbers = {name: measure({name: func}, columns, ["in turn"], **options) for name, func in REWARDS.items()}
        for name, rewards in {"all shipped": SHIPPED, "all": REWARDS}.items():
            numbers[name] = measure(rewards, columns, list(WAYS), **options)
    finally:
        torch.set_num_threads(before)
    print(f"| rewards | {' | '.join(f'{way}: wall s, cpu s' for way in WAYS)} |")
    print("| --- " * (len(WAYS) + 1) + "|")
    for name, ways in numbers.items():
        cells = [f"{ways[way]['wall_s']:.3f}, {ways[way]['cpu_s']:.3f}" if way in ways else "" for way in WAYS]
        print(f"| {name} | {' | '.join(cells)} |")
    if args.output:
        args.output.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
