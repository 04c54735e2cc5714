"""Compare all stages over several seeds: a table of each stage's scores, and of the gain by each stage.

python recipes/compare_stages.py --stages outputs/demo_full --output_dir outputs/demo_full/table

It reads <stages>/evaluate_<stage>[-<seed>]/results.jsonl and writes table.md and result.json, whose figures are the
gains that have a bar. The stages are those of recipes/synthetic/stages.yaml, or of stages.yaml in
recipes/synthetic/state_layers or recipes/synthetic/tenth.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aurora_rl.assembly.options import OptionParser
from aurora_rl.evaluation.figures import TABLE_FILE, Figure, write_result
from aurora_rl.evaluation.intervals import Interval, bootstrap_over_seeds
from aurora_rl.evaluation.measures import MEASURES
from aurora_rl.evaluation.records import RowResult, read_results
from aurora_rl.scripts.stage_outputs import check_known, processor_seconds
from aurora_rl.tasks.completions import normalise_category
from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation

#: The task of the stages.
TASK = ReferenceSegmentation()
#: Stages in the order of the table, with their names in it; stages that were not evaluated are skipped.
TITLES = {
    "teacher": "teacher (no chain)",
    "sft_plain": "SFT without distillation",
    "sft": "SFT with distillation",
    "sft_longer": "the same, trained longer",
    "reflection": "reflective training",
    "grpo_after_sft_plain": "GRPO after SFT without distillation",
    "grpo_after_sft": "GRPO after SFT with distillation",
    "grpo_after_sft_longer": "GRPO after longer training",
    "grpo_after_reflection": "GRPO after reflective training",
    "tenth_early": "SFT on a tenth, at first",
    "tenth": "SFT on a tenth",
    "tenth_longer": "SFT continued on the tenth",
    "tenth_answers": "SFT on plain answers of all clips",
    "tenth_grpo": "GRPO on all clips",
    "layer-4": "mask head after layer 4, the last",
    "layer-3": "mask head after layer 3",
    "layer-2": "mask head after layer 2",
}
#: Gains in the table: a stage, the stage that it is compared with, and the name of the gain.
COMPARISONS = (
    ("sft", "sft_plain", "distillation"),
    ("sft_longer", "sft", "further steps on gold chains"),
    ("reflection", "sft_longer", "reflective training, beside as many steps on gold chains"),
    ("grpo_after_sft_plain", "sft_plain", "GRPO after SFT without distillation"),
    ("grpo_after_sft", "sft", "GRPO after SFT with distillation"),
    ("grpo_after_sft_longer", "sft_longer", "GRPO after further steps on gold chains"),
    ("grpo_after_reflection", "reflection", "GRPO after reflective training"),
    ("grpo_after_sft", "grpo_after_sft_plain", "distillation, after GRPO"),
    ("grpo_after_reflection", "grpo_after_sft_longer", "reflective training, after GRPO"),
    ("tenth", "tenth_early", "SFT on the tenth to its end"),
    ("tenth_longer", "tenth", "further steps on the tenth"),
    ("tenth_answers", "tenth", "plain answers of all clips"),
    ("tenth_grpo", "tenth", "GRPO on all clips"),
    ("tenth_grpo", "tenth_longer", "GRPO on all clips, beside further steps on the tenth"),
    ("tenth_grpo", "tenth_answers", "GRPO on all clips, beside plain answers of them"),
    ("layer-3", "layer-4", "layer 3 instead of the last"),
    ("layer-2", "layer-4", "layer 2 instead of the last"),
)
COLUMNS = (
    "greedy_iou",
    "non_null_iou",
    "category_accuracy",
    "format_rate",
    "sampled_reward",
    "sampled_iou",
    "chain_see",
    "chain_hear",
)
COMPARED = ("greedy_iou", "category_accuracy", "sampled_reward")
#: Measures in which a stage must be better than the one that it is compared with, beyond chance.
BARS = {("tenth_grpo", "tenth_longer"): ("category_accuracy", "greedy_iou")}
NOTES = """\
Means over the seeds, the lowest and the highest seed in brackets. Gold chains of the synthetic benchmark stand in for
the stronger model that writes chains of thought and corrects mistakes; the mistakes are those of each seed's own SFT
model. "Taken back" is the share of greedy answers that reconsider their first chain."""

#: Results of a stage by seed.
Runs = dict[int, list[RowResult]]


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and range of a number that was measured with several seeds."""

    mean: float
    low: float
    high: float


def read_runs(folder: Path) -> dict[str, Runs]:
    """Read the results of each evaluated stage, by seed; a stage without seeds has seed 0.

    Raises:
        FileNotFoundError: if none of the stages of `TITLES` was evaluated.
    """
    runs: dict[str, Runs] = {}
    for file in sorted(folder.glob("evaluate_*/results.jsonl")):
        if match := re.fullmatch(r"evaluate_([\w-]+?)(?:-(\d+))?", file.parent.name):
            runs.setdefault(match[1], {})[int(match[2] or 0)] = read_results(file)
    if not runs.keys() & TITLES.keys():
        others = f", but of {', '.join(sorted(runs))}" if runs else ""
        raise FileNotFoundError(
            f"{folder} holds no evaluate_<stage>/results.jsonl of a stage of this table{others}: run the stages first"
        )
    return {stage: runs[stage] for stage in TITLES if stage in runs}


def spread(numbers: Sequence[float]) -> Spread:
    """Compute mean, lowest and highest number."""
    return Spread(sum(numbers) / len(numbers), min(numbers), max(numbers))


def scores(runs: Runs, seconds: Sequence[float] = ()) -> dict[str, Spread | None]:
    """Compute a stage's row of the table; `seconds` is the processor time of its trainings, as far as it is known."""
    row: dict[str, Spread | None] = {}
    for measure in COLUMNS:
        seeds = [list(MEASURES[measure].values(results).values()) for results in runs.values()]
        row[measure] = spread([sum(values) / len(values) for values in seeds]) if all(seeds) else None
    row["taken_back"] = spread([sum(map(is_taken_back, results)) / len(results) for results in runs.values()])
    row["right_at_first"], row["right_at_last"] = right_of_taken_back(runs, 0), right_of_taken_back(runs, -1)
    row["processor_seconds"] = spread(seconds) if seconds else None
    return row


def is_taken_back(result: RowResult) -> bool:
    """Return whether the greedy answer corrects its first claim."""
    return TASK.parse(result.completion.text).standing != result.completion.text


def right_of_taken_back(runs: Runs, claim: int) -> Spread | None:
    """Compute the share of corrected answers whose first (0) or last (-1) claim is true; None without any."""
    shares = []
    for results in runs.values():
        answers = [result for result in results if is_taken_back(result)]
        claims = [TASK.parse(result.completion.text).targets or (None,) for result in answers]
        right = [named[claim] == normalise_category(r.category) for named, r in zip(claims, answers, strict=True)]
        shares += [sum(right) / len(right)] if right else []
    return spread(shares) if shares else None


def of_shared_seeds(after: Runs, before: Runs) -> list[tuple[list[RowResult], list[RowResult]]]:
    """Pair the models of the seeds that both stages have; one that has been trained once stands before every seed."""
    if before.keys() == {0} and 0 not in after:
        before = dict.fromkeys(after, before[0])
    return [(after[seed], before[seed]) for seed in sorted(after.keys() & before.keys())]


def gain(after: Runs, before: Runs, measure: str) -> Interval | None:
    """Compute a stage's gain: models of the same seed are compared row by row, see `of_shared_seeds`.

    The result is None if the measure applies to no row, or the stages have no seed in common.

    Raises:
        ValueError: if two models were not evaluated on the same rows.
    """
    differences = []
    for pair in of_shared_seeds(after, before):
        later, earlier = (MEASURES[measure].values(results) for results in pair)
        check_known(later, earlier)
        differences.append({key: later[key] - earlier[key] for key in later})
    return bootstrap_over_seeds(differences) if differences and all(differences) else None


def bars(gains: Sequence[dict[str, Any]]) -> list[Figure]:
    """Return the gains that have a bar, each beside it: the lower end of its interval is above 0."""
    asked = [(entry, measure) for entry in gains for measure in BARS.get((entry["after"], entry["before"]), ())]
    return [
        Figure.of(
            f"{entry['name']}: {_label(measure)}", entry[measure], bar="interval above 0", met=entry[measure].low > 0
        )
        for entry, measure in asked
        if entry[measure] is not None
    ]


def markdown(table: dict[str, dict[str, Spread | None]], gains: list[dict[str, Any]]) -> str:
    """Write both tables as Markdown."""
    header = [
        "stage",
        *map(_label, COLUMNS),
        "taken back",
        "of these right at first",
        "right at last",
        "processor seconds",
    ]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for stage, row in table.items():
        *numbers, seconds = row.values()
        lines.append("| " + " | ".join([TITLES[stage], *map(_cell, numbers), _cell(seconds, digits=0)]) + " |")
    header = ["what is added", "seeds", *map(_label, COMPARED)]
    lines += ["", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for entry in gains:
        cells = [entry["name"], str(entry["seeds"]), *(_gain_cell(entry[measure]) for measure in COMPARED)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _label(name: str) -> str:
    measure = MEASURES[name]
    return measure.label if measure.scale == 1 else f"{measure.label}, of {measure.scale:g}"


def _cell(value: Spread | None, *, digits: int = 3) -> str:
    if value is None:
        return "–"
    mean, low, high = (f"{number:.{digits}f}" for number in dataclasses.astuple(value))
    return mean if value.low == value.high else f"{mean} ({low}–{high})"


def _gain_cell(value: Interval | None) -> str:
    if value is None:
        return "–"
    text = f"{value.mean:+.3f} [{value.low:+.3f}, {value.high:+.3f}]".replace("-", "−")
    return f"**{text}**" if value.low > 0 or value.high < 0 else text


def main(argv: Sequence[str] | None = None) -> None:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--stages", type=Path, required=True, help="output folder of recipes/run_stages.py")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder that the table is written to")
    parser.add_argument("--system", default="stages", help="name of the stages in result.json")
    args = parser.parse_args(argv)
    with parser.refusing():
        runs = read_runs(args.stages)
        table = {
            stage: scores(of_stage, list(processor_seconds(args.stages, stage).values()))
            for stage, of_stage in runs.items()
        }
        gains = [
            {"name": name, "after": after, "before": before, "seeds": len(of_shared_seeds(runs[after], runs[before]))}
            | {measure: gain(runs[after], runs[before], measure) for measure in COMPARED}
            for after, before, name in COMPARISONS
            if after in runs and before in runs
        ]
    num_seeds = max(map(len, runs.values()))
    num_rows = max(len(rows) for seeds in runs.values() for rows in seeds.values())
    write_result(
        args.output_dir,
        system=args.system,
        size=f"{num_seeds} seed{'s' if num_seeds > 1 else ''}, {num_rows:,} held-out rows",
        figures=bars(gains),
        numbers={"stages": table, "gains": gains},
        table=f"{NOTES}\n\n{markdown(table, gains)}",
    )
    print((args.output_dir / TABLE_FILE).read_text())
