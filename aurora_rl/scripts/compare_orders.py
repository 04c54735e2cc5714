"""Compare curricula: accuracy after equally many steps, and dead groups, foretold by pass rates and counted.

python recipes/compare_orders.py --stages outputs/audio_qa_tiny --output_dir outputs/audio_qa_tiny/table

It reads what recipes/synthetic/audio_qa/stages.yaml leaves, and writes table.md and result.json. Stages that were not
run are left out, so that a part of them has a table, too.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.assembly.options import OptionParser
from aurora_rl.evaluation.figures import TABLE_FILE, Figure, write_result
from aurora_rl.evaluation.intervals import Interval, bootstrap_interval, bootstrap_over_seeds
from aurora_rl.evaluation.records import read_results
from aurora_rl.files.plain import parse_json, read_text_file

#: What tasks and orders are called in the table.
TASKS = {"PlannedAnswerInWords": "structured", "ThinkAnswerInWords": "free"}
ORDERS = ("easy_to_hard", "shuffled", "middle_out")
#: The order that the others are compared with.
CONTROL = "shuffled"
RESULTS, MUTED = "results.jsonl", "results.audio_muted.jsonl"
#: TRL's metric for groups whose rewards are all alike, and ours for what the pass rates foretell.
COUNTED, FORETOLD = "frac_reward_zero_std", "dead_groups/predicted"
PARTS = 10
#: How far the dead groups that are counted may be from those foretold.
CLOSE = 0.05

#: Accuracy of each question by its uid, of each seed.
Runs = dict[int, dict[str, float]]


@dataclasses.dataclass(frozen=True)
class DeadGroups:
    """Shares of dead groups of one run or of a part of it.

    Attributes:
        steps: number of optimiser steps that they are means of.
        foretold: share that the pass rates of the rows trained on foretell, for accuracy as the only reward.
        counted: share that the trainer has counted, over all rewards.
        difference: counted - foretold, its interval over steps.
    """

    steps: int
    foretold: float
    counted: float
    difference: Interval

    @classmethod
    def of_steps(cls, steps: Sequence[tuple[float, float]]) -> DeadGroups:
        """Compute the means of (foretold, counted) pairs, one a step of equally many groups."""
        foretold, counted = (math.fsum(values) / len(steps) for values in zip(*steps, strict=True))
        return cls(
            len(steps), foretold, counted, bootstrap_interval([counted - foretold for foretold, counted in steps])
        )


def read_accuracies(folder: Path, stage: str, file: str = RESULTS) -> dict[tuple[str, str], Runs]:
    """Read whether each question was answered right, by task and order, of all seeds of a stage's evaluations.

    Args:
        folder: output folder of the stages.
        stage: "sft", whose order is "" and seed 0, or "grpo".
        file: name of the results in an evaluation's folder.
    """
    found: dict[tuple[str, str], Runs] = defaultdict(dict)
    for path in sorted(folder.glob(f"evaluate_{stage}-*/{file}")):
        named = re.fullmatch(rf"evaluate_{stage}-(\w+?)(?:-(\w+)-(\d+))?", path.parent.name)
        if named is not None:
            rows = read_results(path)
            values = {row.uid: float(row.greedy is not None and row.greedy.is_right) for row in rows}
            found[named[1], named[2] or ""][int(named[3] or 0)] = values
    return dict(found)


def read_dead_groups(folder: Path) -> list[tuple[float, float]]:
    """Read the shares (foretold, counted) of each step of a run from its trainer_state.json."""
    history = parse_json(read_text_file(folder / "trainer_state.json"))["log_history"]
    return [(line[FORETOLD], line[COUNTED]) for line in history if FORETOLD in line and COUNTED in line]


def runs_with_dead_groups(folder: Path, stage: str) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Yield the name of each run of a stage without its seed, and its steps' shares of dead groups."""
    for path in sorted(folder.glob(f"{stage}-*/trainer_state.json")):
        if re.fullmatch(rf"{stage}-\w+-\w+(-\d+)?", path.parent.name) and (steps := read_dead_groups(path.parent)):
            yield re.sub(r"-\d+$", "", path.parent.name.removeprefix(f"{stage}-")), steps


def by_parts(runs: Sequence[Sequence[tuple[float, float]]]) -> list[DeadGroups]:
    """Compute the shares of each tenth of training, over the runs of all seeds."""
    parts: list[list[tuple[float, float]]] = [[] for _ in range(PARTS)]
    for steps in runs:
        for number, step in enumerate(steps):
            parts[number * PARTS // len(steps)].append(step)
    return [DeadGroups.of_steps(part) for part in parts if part]


def difference(after: Runs, before: Runs) -> Interval:
    """Compute the mean gain over seeds and questions; one run that came before serves all seeds."""
    gains = [
        {uid: value - before.get(seed, before[min(before)])[uid] for uid, value in values.items()}
        for seed, values in sorted(after.items())
    ]
    return bootstrap_over_seeds(gains)


def compare(folder: Path) -> dict[str, Any]:
    """Compute the whole comparison from the stages' folder.

    Raises:
        FileNotFoundError: if neither an evaluation nor a count of dead groups is there.
    """
    sft, grpo = (read_accuracies(folder, stage) for stage in ("sft", "grpo"))
    muted = read_accuracies(folder, "sft", MUTED) | read_accuracies(folder, "grpo", MUTED)
    still = {
        kind: {name: DeadGroups.of_steps(steps) for name, steps in runs_with_dead_groups(folder, kind)}
        for kind in ("dead_groups", "dead_groups_kept")
    }
    training: dict[str, list[list[tuple[float, float]]]] = defaultdict(list)
    for name, steps in runs_with_dead_groups(folder, "grpo"):
        training[name].append(steps)
    if not sft and not grpo and not any(still.values()):
        raise FileNotFoundError(f"{folder} holds no evaluate_*/{RESULTS} and no dead groups: run the stages first")
    everything = sft | grpo
    return {
        "accuracy": {_name(key): difference(runs, _nothing(runs)) for key, runs in everything.items()},
        "muted": {_name(key): difference(runs, _nothing(runs)) for key, runs in muted.items()},
        "by_seed": {
            _name(key): {seed: math.fsum(values.values()) / len(values) for seed, values in runs.items()}
            for key, runs in everything.items()
        },
        "gain": {title: difference(after, before) for title, after, before in _pairs(sft, grpo)},
        "dead_groups_without_learning": still,
        "dead_groups_in_training": {name: by_parts(runs) for name, runs in training.items()},
    }


def _nothing(runs: Runs) -> Runs:
    return {seed: dict.fromkeys(values, 0.0) for seed, values in runs.items()}


def _name(key: tuple[str, str]) -> str:
    task, order = key
    return f"{TASKS.get(task, task)}, {order or 'SFT'}"


def _pairs(
    sft: Mapping[tuple[str, str], Runs], grpo: Mapping[tuple[str, str], Runs]
) -> Iterator[tuple[str, Runs, Runs]]:
    """Yield each comparison that can be made: its title, the runs after, and the runs before."""
    for (task, order), runs in grpo.items():
        if (task, "") in sft:
            yield f"GRPO, {_name((task, order))}", runs, sft[task, ""]
        if order != CONTROL and (task, CONTROL) in grpo:
            yield f"{_name((task, order))}, instead of {CONTROL}", runs, grpo[task, CONTROL]
    structured, free = TASKS
    for order in ("", *ORDERS):
        found = sft if not order else grpo
        if {(structured, order), (free, order)} <= found.keys():
            yield f"structured instead of free, {order or 'SFT'}", found[structured, order], found[free, order]


def figures(table: Mapping[str, Any]) -> list[Figure]:
    """Return how far the dead groups that were counted are from those foretold, where no step has changed the model."""
    return [
        Figure.of(
            f"dead groups, counted - foretold, {_run(name)}, {'all rows' if kind == 'dead_groups' else 'rows kept'}",
            dead.difference,
            bar=f"within {CLOSE}",
            met=abs(dead.difference.mean) <= CLOSE,
        )
        for kind, runs in table["dead_groups_without_learning"].items()
        for name, dead in runs.items()
    ]


def markdown(table: Mapping[str, Any]) -> str:
    """Write the comparison as Markdown."""
    lines = ["| reasoning, order | accuracy | of each seed | muted |", "|---|---|---|---|"]
    for name, accuracy in table["accuracy"].items():
        seeds = ", ".join(f"{value:.3f}" for value in table["by_seed"][name].values())
        muted = table["muted"][name].in_words() if name in table["muted"] else ""
        lines.append(f"| {name} | {accuracy.in_words()} | {seeds} | {muted} |")
    lines += ["", "| what is compared | gain in accuracy |", "|---|---|"]
    lines += [f"| {title} | {gain.in_words(signed=True)} |" for title, gain in table["gain"].items()]
    lines += ["", "| dead groups | steps | foretold | counted | counted - foretold |", "|---|---|---|---|---|"]
    for kind, runs in table["dead_groups_without_learning"].items():
        rows = "all rows" if kind == "dead_groups" else "rows that are left"
        lines += [_dead_row(f"learning rate 0, {rows}, {_run(name)}", dead) for name, dead in runs.items()]
    for name, parts in table["dead_groups_in_training"].items():
        lines += [_dead_row(f"{_run(name)}, first tenth", parts[0]), _dead_row(f"{_run(name)}, last tenth", parts[-1])]
    return "\n".join(lines)


def _run(name: str) -> str:
    task, _, order = name.partition("-")
    return _name((task, order))


def _dead_row(title: str, dead: DeadGroups) -> str:
    shares = f"{dead.foretold:.3f} | {dead.counted:.3f} | {dead.difference.in_words(signed=True)}"
    return f"| {title} | {dead.steps} | {shares} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, compare, and write both tables."""
    parser = OptionParser(description=__doc__)
    parser.add_argument("--stages", type=Path, required=True, help="output folder of recipes/run_stages.py")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder that the table is written to")
    args = parser.parse_args(argv)
    with parser.refusing():
        table = compare(args.stages)
    seeds = max((len(of_seed) for of_seed in table["by_seed"].values()), default=0)
    write_result(
        args.output_dir,
        system="curriculum",
        size=f"{seeds} seeds, {len(table['accuracy'])} ways of training",
        figures=figures(table),
        numbers=table,
        table=markdown(table),
    )
    print((args.output_dir / TABLE_FILE).read_text())
