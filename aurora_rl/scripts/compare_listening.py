"""Does the model listen? Compare GRPO with and without rewards for it, and SFT that continues, over several seeds.

python recipes/compare_listening.py --stages outputs/listening --output_dir outputs/listening/table

It reads the outputs of recipes/synthetic/listening/stages.yaml, <stages>/evaluate_<stage>[-<seed>]/results.jsonl with
results.audio_muted.jsonl beside it, and writes table.md and result.json. Stages that were not evaluated are skipped.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.assembly.options import OptionParser
from aurora_rl.evaluation.figures import TABLE_FILE, Figure, write_result
from aurora_rl.evaluation.intervals import Interval, bootstrap_difference, bootstrap_interval
from aurora_rl.evaluation.records import RowResult, read_results
from aurora_rl.files.plain import read_records
from aurora_rl.scripts.stage_outputs import check_known, processor_seconds, results_by_seed

STAGES = {
    "sft": "early SFT",
    "sft_longer": "SFT continued",
    "grpo": "GRPO",
    "grpo_listening": "GRPO with listening_reward",
    "grpo_perception": "GRPO with perception_reward",
}
#: Differences in the table: a stage, and the one that it is compared with.
COMPARISONS = (
    ("grpo", "sft_longer"),
    ("grpo_listening", "sft_longer"),
    ("grpo_listening", "grpo"),
    ("grpo_perception", "grpo"),
    ("grpo_listening", "grpo_perception"),
)
HEARING, MUTED = "results.jsonl", "results.audio_muted.jsonl"

#: Results by (seed, uid and row); seeds are pooled.
Rows = dict[tuple[str, str], RowResult]


def asks_for_sound(reference_type: str | None) -> bool:
    """Tell whether references of a type name their object by a sound."""
    return "audio" in (reference_type or "")


def _accuracy(row: RowResult) -> float | None:
    return float(row.greedy is not None and row.greedy.is_right) if asks_for_sound(row.reference_type) else None


def _hears(row: RowResult) -> float | None:
    return 0.0 if row.greedy is None else row.greedy.scores.get("hear") or 0.0


@dataclasses.dataclass(frozen=True)
class Number:
    """One number of the table.

    Attributes:
        label: its name in the table.
        file: file of an evaluation that it is taken from.
        of_row: function that gives a row's value; None where the number does not apply.
    """

    label: str
    file: str
    of_row: Callable[[RowResult], float | None]


NUMBERS = {
    "accuracy": Number("accuracy, references to a sound", HEARING, _accuracy),
    "chain_hear": Number("chain names the sounds", HEARING, _hears),
    "muted": Number("accuracy, muted", MUTED, _accuracy),
}


def read_stage(folder: Path, stage: str, file: str) -> Rows:
    """Read a stage's results of all seeds; none if it was not evaluated."""
    found = results_by_seed(folder, stage, file)
    rows = [(seed, row) for seed, path in found.items() for row in read_results(path)]
    return {(seed, f"{row.uid}#{row.row}"): row for seed, row in rows}


def values_of(rows: Rows, number: Number) -> dict[tuple[str, str], float]:
    """Return the number's value of each row that it applies to."""
    values = {key: number.of_row(row) for key, row in rows.items()}
    return {key: value for key, value in values.items() if value is not None}


def interval_of(rows: Rows, number: Number, than: Mapping[str, float] | None = None) -> Interval:
    """Compute the mean of all seeds with its interval over clips, or how far it is above a value of each row.

    Raises:
        ValueError: if a row has no such value.
    """
    values = values_of(rows, number)
    check_known([row for _, row in values], than)
    above = [value - (than[row] if than else 0.0) for (_, row), value in values.items()]
    return bootstrap_interval(above, clips=[rows[key].media_id for key in values])


def difference(before: Rows, after: Rows, number: Number) -> tuple[Interval, int]:
    """Compute the paired difference, row by row, over the seeds that both stages have, and count these.

    A clip is drawn with all of its rows and seeds.

    Raises:
        ValueError: if they have no seed in common.
    """
    seeds = {seed for seed, _ in before} & {seed for seed, _ in after}
    if not seeds:
        have = " and ".join(str(sorted({seed for seed, _ in rows})) for rows in (before, after))
        raise ValueError(f"two stages were evaluated with the seeds {have}: evaluate both with the same")
    flat = [
        {"/".join(key): value for key, value in values_of(rows, number).items() if key[0] in seeds}
        for rows in (before, after)
    ]
    clips = {"/".join(key): row.media_id for key, row in before.items() if key[0] in seeds}
    return bootstrap_difference(*flat, clips=clips), len(seeds)


def accuracies_of_sight(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return whether the best answerer who only sees is right (1 or 0), by the row's uid and number.

    Sounds are drawn without a look at the picture. So the best that sight can do about a reference to a sound is to
    answer with the place, counted from the left, that is right most often in the training split for the same sentence
    and the same number of things in view.

    Args:
        records: rows of the benchmark's file of chains; `seen` holds the categories in view from left to right.
    """
    places: dict[tuple[str, int], Counter[int]] = defaultdict(Counter)
    asked = [record for record in records if asks_for_sound(record["reference_type"])]
    for record in asked:
        if record["split"] == "train":
            places[_question(record)][record["seen"].index(record["category"])] += 1
    right = {}
    for record in asked:
        learned = places[_question(record)].most_common(1)
        guess = record["seen"][learned[0][0]] if learned else None
        right[f"{record['uid']}#{record['row']}"] = float(guess == record["category"])
    return right


def _question(record: Mapping[str, Any]) -> tuple[str, int]:
    return record["exp"], len(record["seen"])


def compare(folder: Path) -> dict[str, Any]:
    """Compute the whole comparison from the stages' folder.

    Raises:
        FileNotFoundError: if no stage was evaluated.
        ValueError: if the evaluations are not of the references to sounds of these data.
    """
    read = {stage: {file: read_stage(folder, stage, file) for file in (HEARING, MUTED)} for stage in STAGES}
    stages = {stage: of_stage for stage, of_stage in read.items() if of_stage[HEARING]}
    if not stages:
        raise FileNotFoundError(f"{folder} holds no evaluate_<stage>/{HEARING}: run the stages first")
    records = [record for _, record in read_records(folder / "data" / "chains.jsonl")]
    sight = accuracies_of_sight(records)
    asked = {row for of_stage in stages.values() for _, row in values_of(of_stage[HEARING], NUMBERS["accuracy"])}
    if not asked:
        raise ValueError(f"{folder}: none of the rows that were evaluated refers to a sound, which are compared here")
    check_known(asked, sight)
    compared = [pair for pair in COMPARISONS if set(pair) <= stages.keys()]
    return {
        "seeds": max(len({seed for seed, _ in of_stage[HEARING]}) for of_stage in stages.values()),
        "references_to_a_sound": len(asked),
        "best_by_sight": sum(sight[row] for row in asked) / len(asked),
        "stages": {
            stage: {name: interval_of(of_stage[number.file], number) for name, number in NUMBERS.items()}
            | {
                "muted_above_sight": interval_of(of_stage[MUTED], NUMBERS["muted"], sight),
                "processor_seconds": processor_seconds(folder, stage),
            }
            for stage, of_stage in stages.items()
        },
        "differences": [
            {"after": after, "before": before} | _differences(stages[before], stages[after])
            for after, before in compared
        ],
    }


def _differences(before: Mapping[str, Rows], after: Mapping[str, Rows]) -> dict[str, Any]:
    found = {name: difference(before[n.file], after[n.file], n) for name, n in NUMBERS.items()}
    return {name: interval for name, (interval, _) in found.items()} | {"seeds": found["accuracy"][1]}


def figures(table: Mapping[str, Any]) -> list[Figure]:
    """Return what the rewards for listening change; nothing was asked of it but that it is told."""
    return [
        Figure.of(f"{number.label}, {STAGES[entry['after']]} - {STAGES[entry['before']]}", entry[name])
        for entry in table["differences"]
        for name, number in NUMBERS.items()
    ]


def markdown(table: Mapping[str, Any]) -> str:
    """Write the comparison as Markdown."""
    header = ["stage", *(number.label for number in NUMBERS.values()), "muted − sight", "processor seconds"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for stage, of_stage in table["stages"].items():
        cells = [STAGES[stage], *(of_stage[name].in_words() for name in NUMBERS)]
        cells += [of_stage["muted_above_sight"].in_words(signed=True)]
        cells += [", ".join(f"{value:.0f}" for value in of_stage["processor_seconds"].values())]
        lines.append("| " + " | ".join(cells) + " |")
    header = ["difference", "seeds", *(number.label for number in NUMBERS.values())]
    lines += ["", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for entry in table["differences"]:
        name = f"{STAGES[entry['after']]} − {STAGES[entry['before']]}"
        cells = [name, str(entry["seeds"]), *(entry[name].in_words(signed=True) for name in NUMBERS)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Means over clips and seeds; 95 % intervals over clips, differences paired row by row. "
        f"{table['references_to_a_sound']} references to a sound; the best answerer that only sees: "
        f"{table['best_by_sight']:.3f}.",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--stages", type=Path, required=True, help="output folder of recipes/run_stages.py")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder that the table is written to")
    args = parser.parse_args(argv)
    with parser.refusing():
        table = compare(args.stages)
    write_result(
        args.output_dir,
        system="listening",
        size=f"{table['seeds']} seeds, {table['references_to_a_sound']} references to a sound",
        figures=figures(table),
        numbers=table,
        table=markdown(table),
    )
    print((args.output_dir / TABLE_FILE).read_text())
