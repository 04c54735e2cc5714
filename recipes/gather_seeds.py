"""Gather the results of the systems into one file and one page: each figure beside its bar, what was not run named so.

python recipes/gather_seeds.py --stages outputs/seeds     (the last step of `make seeds` and `make seeds-full`)

It reads <stages>/<system>/result.json or <stages>/<system>/table/result.json, as `aurora_rl.evaluation.figures` writes
them, and writes <stages>/results.json and <stages>/results.md.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.assembly.options import OptionParser
from aurora_rl.evaluation.figures import RESULT_FILE, TABLE_FILE, figure_table
from aurora_rl.files.atomic import write_whole
from aurora_rl.files.plain import parse_json

#: The systems in the order of the page, and the command that runs each.
SYSTEMS = {
    "matchers": "make seeds",
    "mcq": "make seeds",
    "tool_choice": "make seeds",
    "agents": "make seeds",
    "temporal": "make seeds",
    "curriculum": "make seeds-full",
    "listening": "make seeds-full",
    "tenth": "make seeds-full",
}
NOT_RUN = "not run"


def read_result(folder: Path, system: str) -> dict[str, Any] | None:
    """Read a system's result; None where it was not run.

    Raises:
        ValueError: if the file is that of another system, or has another form.
    """
    places = [folder / system, folder / system / "table"]
    path = next((place / RESULT_FILE for place in places if (place / RESULT_FILE).is_file()), None)
    if path is None:
        return None
    found = parse_json(path.read_bytes())
    if not isinstance(found, dict) or not {"size", "numbers", "figures"} <= set(found) or found.get("system") != system:
        raise ValueError(
            f"{path} is no result of {system}: expected what `write_result` of aurora_rl/evaluation/figures.py writes"
        )
    return {**found, "table": path.with_name(TABLE_FILE).read_text()}


def to_object(result: Mapping[str, Any] | None) -> dict[str, Any]:
    """Make a system's object of `results.json`: its numbers by name, its figures, and whether all bars are met."""
    if result is None:
        return {"status": NOT_RUN}
    asked = [figure["met"] for figure in result["figures"] if figure["met"] is not None]
    told = {"status": "run", "size": result["size"], "met": sum(asked), "bars": len(asked)}
    return {**told, **result["numbers"], "figures": result["figures"]}


def markdown(results: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Write a page with a section a system."""
    lines = ["# The seeds' systems, measured", ""]
    for system, result in results.items():
        told = [f"Not run; `{SYSTEMS[system]}` does."] if result is None else [result["size"], result["table"]]
        lines += [f"## {system}", "", "\n\n".join(filter(None, told)), ""]
    return "\n".join(lines)


def summary(results: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Write all figures that have a bar as one table."""
    rows = [
        {**figure, "name": f"{system}: {figure['name']}"}
        for system, result in results.items()
        for figure in (result or {"figures": []})["figures"]
        if figure["met"] is not None
    ]
    missing = [system for system, result in results.items() if result is None]
    return figure_table(rows) + (f"\n\nNot run: {', '.join(missing)}." if missing else "")


def main(argv: Sequence[str] | None = None) -> None:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--stages", type=Path, required=True, help="output folder of the systems' stages")
    args = parser.parse_args(argv)
    results = {system: read_result(args.stages, system) for system in SYSTEMS}
    content = {system: to_object(result) for system, result in results.items()}
    write_whole(args.stages / "results.json", json.dumps(content, indent=2) + "\n")
    write_whole(args.stages / "results.md", markdown(results) + "\n")
    print(summary(results))


if __name__ == "__main__":
    main()
