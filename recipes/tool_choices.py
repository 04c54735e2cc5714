"""Compare chosen tools with none, all, random ones, the best fixed set and the best of each question.

python recipes/tool_choices.py --stages outputs/tools --output_dir outputs/tools/table

It reads the evaluations `evaluate_<name>[-<seed>]` of recipes/synthetic/tools/stages.yaml, or of runs of one's own, and
writes table.md and result.json.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from aurora_rl.assembly.options import OptionParser
from aurora_rl.data.tool_table import TOOLS_FILE, load_tool_questions, read_tools, rights_of
from aurora_rl.evaluation.figures import Figure, write_result
from aurora_rl.evaluation.records import read_results
from aurora_rl.evaluation.tool_sets import (
    ChosenSet,
    accuracies,
    best_fixed_set,
    call_shares,
    choice_counts,
    gained_share,
    interval,
)
from aurora_rl.tasks.tool_choice import ToolChoice, chosen_tools

#: The tool that lies in the synthetic table.
LIES = "assistant"


def chosen_sets(stages: Path, table: Path, split: str, name: str) -> dict[str, list[ChosenSet]]:
    """Read the chosen sets of an evaluation, by seed.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is of other questions than the table's.
    """
    samples = {(sample.uid, sample.row): sample for sample in load_tool_questions(table, split)}
    folders = sorted([*stages.glob(f"evaluate_{name}"), *stages.glob(f"evaluate_{name}-[0-9]*")])
    if not folders:
        raise FileNotFoundError(f"{stages} holds no evaluate_{name}: run the stages first")
    task, found = ToolChoice(), {}
    for folder in folders:
        rows = []
        for result in read_results(folder / "results.jsonl"):
            sample = samples.get((result.uid, result.row))
            if sample is None:
                raise ValueError(f"{folder} has the row {result.key!r}, which split {split!r} of {table} has not")
            text = "" if result.greedy is None else result.greedy.text
            rows.append(ChosenSet(sample.key, rights_of(sample), chosen_tools(task.parse(text), sample)))
        found[folder.name.removeprefix(f"evaluate_{name}").removeprefix("-")] = rows
    return found


def markdown(rows: Sequence[ChosenSet], tools: Sequence[str]) -> str:
    """Write the table: what each choice is worth, and what the policy calls."""
    lines = ["| choice | accuracy | 95 % |", "|---|---|---|"]
    for name, values in accuracies(rows).items():
        found = interval(values, rows)
        lines.append(f"| {name} | {found.mean:.3f} | {found.low:.3f} to {found.high:.3f} |")
    fixed = ", ".join(tools[tool] for tool in best_fixed_set(rows)) or "none"
    counts = ", ".join(f"{name} {value:.3f}" for name, value in choice_counts(rows).items())
    calls = ", ".join(f"{name} {share:.3f}" for name, share in zip(tools, call_shares(rows), strict=True))
    return "\n".join([*lines, "", f"Best fixed set: {fixed}. The policy: {counts}. Calls: {calls}."])


def figures(by_seed: Mapping[str, Sequence[ChosenSet]], tools: Sequence[str]) -> list[Figure]:
    """Compute the figures of the seeds beside their bars."""
    gained = [gained_share(rows) for rows in by_seed.values()]
    readable = [choice_counts(rows)["readable"] for rows in by_seed.values()]
    lies = [call_shares(rows)[tools.index(LIES)] for rows in by_seed.values()] if LIES in tools else []
    found = [
        Figure("(accuracy - none) / (best of each - none), each seed", gained, ">= 0.8", min(gained) >= 0.8),
        Figure("readable sets, each seed", readable, ">= 0.95", min(readable) >= 0.95),
    ]
    return [*found, *([Figure("calls of the lying tool, each seed", lies, "< 0.05", max(lies) < 0.05)] if lies else [])]


def main(argv: Sequence[str] | None = None) -> None:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--stages", type=Path, required=True, help="folder that holds the evaluations")
    parser.add_argument("--data_root", type=Path, default=None, help="folder of the tool table; <stages>/data/table")
    parser.add_argument("--split", default="test", help="split that was evaluated")
    parser.add_argument("--name", default="grpo", help="name of the evaluated stage, after 'evaluate_'")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder that the table is written to")
    args = parser.parse_args(argv)
    table = args.data_root or args.stages / "data" / "table"
    with parser.refusing():
        tools = [name for name, _ in read_tools(table / TOOLS_FILE)]
        by_seed = chosen_sets(args.stages, table, args.split, args.name)
    rows = [row for of_seed in by_seed.values() for row in of_seed]
    text = markdown(rows, tools)
    write_result(
        args.output_dir,
        system="tool_choice",
        size=f"{len(by_seed)} seeds, {len({row.question for row in rows})} held-out questions",
        figures=figures(by_seed, tools),
        numbers={
            "accuracy": {name: dataclasses.asdict(interval(values, rows)) for name, values in accuracies(rows).items()},
            "counts": choice_counts(rows),
            "calls": dict(zip(tools, call_shares(rows), strict=True)),
        },
        table=text,
    )
    print(text)


if __name__ == "__main__":
    main()
