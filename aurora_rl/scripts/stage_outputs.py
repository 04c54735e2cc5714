"""What stages of several seeds leave behind, as the scripts that compare them read it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from aurora_rl.files.plain import parse_json


def results_by_seed(folder: Path, stage: str, file: str) -> dict[str, Path]:
    """Return the files of a stage's evaluations by the seed, in order; "" is the seed of a stage that has only one.

    Args:
        folder: output folder of recipes/run_stages.py.
        stage: name of the stage that was evaluated, by `evaluate_<stage>`.
        file: name of the file in the evaluation's folder.
    """
    paths = {path.name.removeprefix(f"evaluate_{stage}").removeprefix("-"): path for path in folder.glob("evaluate_*")}
    return {seed: paths[seed] / file for seed in sorted(paths) if seed.isdecimal() or not seed}


def check_known(rows: Collection[str], known: Collection[str] | None) -> None:
    """Check that evaluated rows are those of the data that they are compared with; a ValueError names the first other.

    Args:
        rows: names of the rows.
        known: names of the rows that there are; None for no comparison.
    """
    if known is not None and (strange := sorted(set(rows) - set(known))):
        raise ValueError(
            f"{len(strange)} of {len(set(rows))} rows were evaluated and are not in what they are compared with, the "
            f"first is {strange[0]!r}: evaluate all stages on the rows of these data"
        )


def processor_seconds(folder: Path, stage: str) -> dict[str, float]:
    """Return the processor time of a stage's runs, as run_stages.py has recorded it."""
    records = sorted(folder.glob(f"stages/{stage}.json")) + sorted(folder.glob(f"stages/{stage}-[0-9]*.json"))
    return {path.stem: parse_json(path.read_bytes())["cpu_seconds"] for path in records}
