"""Let scripted agents of known error rates work on many rows, and compare how often they are right with closed forms.

python recipes/check_agents.py --output_dir outputs/agents_in_rounds

No model is asked: the votes, the rounds and the checks are those of `aurora-rl agents`. It writes table.md and
result.json.
"""

from collections.abc import Sequence
from pathlib import Path

from aurora_rl.agents.closed_forms import check_rows, checked_rate, majority_rate, vote_rows
from aurora_rl.assembly.options import OptionParser
from aurora_rl.evaluation.figures import TABLE_FILE, Figure, write_result
from aurora_rl.evaluation.intervals import bootstrap_interval

#: How often a voter and a try of the segmenter are right, the number of voters and of checks.
VOTER, TRY, AGENTS, CHECKS = 0.7, 0.6, 3, 3
#: Sensitivity and false alarm of a check that sees, and of one that guesses.
SEES, GUESSES = (0.9, 0.1), (0.5, 0.5)
#: How far a simulation of 1,000 rows may be from its closed form.
TOLERANCE = 0.03


def figures(rows: int) -> dict[str, Figure]:
    """Simulate, and return each figure beside its closed form, by its name in `results.json`."""
    voters = f"majority of {AGENTS}, each right in {VOTER}"
    return {
        "independent": _figure(
            f"{voters}, independently", vote_rows(VOTER, AGENTS, rows), majority_rate(VOTER, AGENTS)
        ),
        "copies": _figure(f"{voters}, all say the same", vote_rows(VOTER, AGENTS, rows, copies=True), VOTER),
        "seeing_check": _checked(SEES, rows),
        "guessing_check": _checked(GUESSES, rows),
    }


def _checked(rates: tuple[float, float], rows: int) -> Figure:
    sensitivity, false_alarm = rates
    name = f"segmenter right in {TRY}, {CHECKS} checks of sensitivity {sensitivity} and false alarm {false_alarm}"
    values = check_rows(TRY, sensitivity, false_alarm, CHECKS, rows)
    return _figure(name, values, checked_rate(TRY, sensitivity, false_alarm, CHECKS))


def _figure(name: str, values: Sequence[float], expected: float) -> Figure:
    found = bootstrap_interval(values)
    met = abs(found.mean - expected) <= TOLERANCE
    return Figure.of(name, found, bar=f"{expected:.3f} ± {TOLERANCE}", met=met)


def main(argv: Sequence[str] | None = None) -> None:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder that the table is written to")
    parser.add_argument("--rows", type=int, default=1000, help="number of rows of each simulation")
    args = parser.parse_args(argv)
    if args.rows < 1:
        parser.error(f"--rows is {args.rows}: a simulation needs one row at least")
    found = figures(args.rows)
    write_result(
        args.output_dir,
        system="agents",
        size=f"{args.rows:,} scripted rows each; no model is asked",
        figures=list(found.values()),
        numbers={name: figure.value for name, figure in found.items()},
        table="",
    )
    print((args.output_dir / TABLE_FILE).read_text())


if __name__ == "__main__":
    main()
