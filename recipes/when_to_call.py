"""Compare a policy that decides when to call a tool with the same policy that never calls, and that always does.

python recipes/when_to_call.py --stages outputs/calls --output_dir outputs/calls/table

It reads the evaluations `evaluate_<policy>-<tool_calls>[-<seed>]` of recipes/synthetic/calls/stages.yaml, or of runs of
one's own, and writes table.md and result.json.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from aurora_rl.assembly.calling import CALL_CHOICES, CALLED
from aurora_rl.assembly.options import OptionParser
from aurora_rl.evaluation.figures import Figure, write_result
from aurora_rl.evaluation.intervals import Interval, bootstrap_interval
from aurora_rl.evaluation.records import RowResult, read_results

#: The policies by their stage, the trained one last.
START, TRAINED = "sft", "grpo"
POLICIES = {START: "start", TRAINED: "GRPO"}
CHOSEN, NEVER, ALWAYS = CALL_CHOICES
#: Bars of the trained policy's call rates, and how far its accuracy may be below that of always calling.
LEAST_NEEDED, MOST_OTHERS, BELOW_ALWAYS = 0.9, 0.1, 0.05


@dataclasses.dataclass(frozen=True)
class Answered:
    """One answer to one question.

    Attributes:
        question: the question's key.
        needs_tool: whether its answer is known through a tool alone.
        is_right: whether the answer is right.
        called: whether it called a tool.
    """

    question: str
    needs_tool: bool
    is_right: bool
    called: bool


def answered(rows: Sequence[RowResult], needs: str, *, sampled: bool = False) -> list[Answered]:
    """Return the greedy answers, or the sampled ones.

    Args:
        rows: rows of an evaluation.
        needs: kind of the questions that need a tool.
        sampled: whether the sampled answers are asked for.

    Raises:
        ValueError: if the evaluation had no tools.
    """
    found = []
    for row in rows:
        for each in row.sampled if sampled else [row.completion]:
            if CALLED not in each.scores:
                raise ValueError(f"row {row.key!r} does not say whether a tool was called: evaluate with tools")
            called = bool(each.scores[CALLED])
            found.append(Answered(row.key, row.reference_type == needs, each.is_right, called))
    return found


def read_policy(stages: Path, policy: str, tool_calls: str) -> dict[str, list[RowResult]]:
    """Read the evaluations of a policy, by seed; that of the start has none.

    Raises:
        FileNotFoundError: if there is none.
    """
    name = f"evaluate_{policy}-{tool_calls}"
    folders = sorted([*stages.glob(name), *stages.glob(f"{name}-[0-9]*")])
    if not folders:
        raise FileNotFoundError(f"{stages} holds no {name}: run the stages first")
    return {each.name.removeprefix(name).removeprefix("-"): read_results(each) for each in folders}


def call_rate(answers: Sequence[Answered], *, needs_tool: bool) -> float:
    """Return the share of answers with a call among those to one kind of question.

    Raises:
        ValueError: if none is of that kind.
    """
    called = [each.called for each in answers if each.needs_tool == needs_tool]
    if not called:
        which = "needs a tool" if needs_tool else "needs none"
        raise ValueError(f"none of {len(answers)} questions {which}: name the kind that needs one by --needs")
    return sum(called) / len(called)


def table_line(name: str, answers: Sequence[Answered]) -> str:
    """Write a line of the table: call rates and accuracies by kind of question, and the whole accuracy's interval."""
    cells = [f"{call_rate(answers, needs_tool=needs):.3f}" for needs in (True, False)]
    for needs in (True, False):
        right = [each.is_right for each in answers if each.needs_tool == needs]
        cells.append(f"{sum(right) / len(right):.3f}")
    whole = accuracy(answers)
    return f"| {name} | {' | '.join(cells)} | {whole.mean:.3f} [{whole.low:.3f}, {whole.high:.3f}] |"


def accuracy(answers: Sequence[Answered]) -> Interval:
    """Compute the share of right answers with its interval over questions, each with all of its seeds."""
    values = [float(each.is_right) for each in answers]
    return bootstrap_interval(values, clips=[each.question for each in answers])


def pooled(by_seed: Mapping[str, Sequence[RowResult]], needs: str, *, sampled: bool = False) -> list[Answered]:
    """Return the answers of all seeds."""
    return [each for rows in by_seed.values() for each in answered(rows, needs, sampled=sampled)]


def markdown(results: Mapping[tuple[str, str], Mapping[str, Sequence[RowResult]]], needs: str) -> str:
    """Write the table: each policy as it likes, sampled and greedy, and where the decision is taken from it."""
    lines = [
        "| policy | calls where needed | calls elsewhere | right where needed | right elsewhere | right [95 %] |",
        "|---|---|---|---|---|---|",
    ]
    for policy, text in POLICIES.items():
        chosen = results[policy, CHOSEN]
        if all(row.sampled for rows in chosen.values() for row in rows):
            lines.append(table_line(f"{text}, as it likes, sampled", pooled(chosen, needs, sampled=True)))
        lines.append(table_line(f"{text}, as it likes, greedy", pooled(chosen, needs)))
        lines += [table_line(f"{text}, {how} calling", pooled(results[policy, how], needs)) for how in (NEVER, ALWAYS)]
    return "\n".join(lines)


def figures(results: Mapping[tuple[str, str], Mapping[str, Sequence[RowResult]]], needs: str) -> list[Figure]:
    """Compute the trained policy's figures, of each seed, beside their bars.

    Raises:
        ValueError: if the ways of calling were not evaluated with the same seeds.
    """
    seeds = {how: {seed: answered(rows, needs) for seed, rows in results[TRAINED, how].items()} for how in CALL_CHOICES}
    if len({frozenset(of_seed) for of_seed in seeds.values()}) > 1:
        have = ", ".join(f"{how}: {sorted(of_seed)}" for how, of_seed in seeds.items())
        raise ValueError(f"the seeds of the evaluations differ ({have}): evaluate each way of calling with all")
    needed = [call_rate(answers, needs_tool=True) for answers in seeds[CHOSEN].values()]
    others = [call_rate(answers, needs_tool=False) for answers in seeds[CHOSEN].values()]
    below = [accuracy(seeds[ALWAYS][seed]).mean - accuracy(own).mean for seed, own in seeds[CHOSEN].items()]
    above = [accuracy(own).mean - accuracy(seeds[NEVER][seed]).mean for seed, own in seeds[CHOSEN].items()]
    bar = f"<= {BELOW_ALWAYS}"
    return [
        Figure("calls where needed, each seed", needed, f">= {LEAST_NEEDED}", min(needed) >= LEAST_NEEDED),
        Figure("calls elsewhere, each seed", others, f"<= {MOST_OTHERS}", max(others) <= MOST_OTHERS),
        Figure("accuracy below always calling, each seed", below, bar, max(below) <= BELOW_ALWAYS),
        Figure("accuracy above never calling, each seed", above, "> 0", min(above) > 0),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--stages", type=Path, required=True, help="folder that holds the evaluations")
    parser.add_argument("--needs", default="loudness", help="kind (reference_type) of the questions that need a tool")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder that the table is written to")
    args = parser.parse_args(argv)
    with parser.refusing():
        results = {(policy, how): read_policy(args.stages, policy, how) for policy in POLICIES for how in CALL_CHOICES}
        text, found = markdown(results, args.needs), figures(results, args.needs)
    trained = results[TRAINED, CHOSEN]
    size = f"{len(trained)} seeds, {len(next(iter(trained.values())))} held-out questions"
    numbers = {
        "accuracy": {f"{policy}-{how}": accuracy(pooled(rows, args.needs)) for (policy, how), rows in results.items()}
    }
    write_result(args.output_dir, system="calls", size=size, figures=found, numbers=numbers, table=text)
    print(text)


if __name__ == "__main__":
    main()
