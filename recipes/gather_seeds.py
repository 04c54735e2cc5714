"""Gather the results of the systems into one file and one page: each figure beside its bar, what was not run named so.

python recipes/gather_seeds.py --stages outputs/seeds     (the last step of `make seeds` and `make seeds-full`)

It reads <stages>/<system>/result.json or <stages>/<system>/table/result.json, as `aurora_rl.evaluation.figures` writes
them, and writes <stages>/results.json and <stages>/results.md.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.assembly.options import OptionParser
from aurora_rl.evaluation.figures import RESULT_FILE, TABLE_FILE, Figure, figure_table
from aurora_rl.files.atomic import whole_files
from aurora_rl.files.existing import check_folder
from aurora_rl.files.plain import parse_json, read_text_file

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
        OSError: if its table is missing.
        ValueError: if the file is that of another system, or has another form.
    """
    places = [folder / system, folder / system / "table"]
    path = next((place / RESULT_FILE for place in places if (place / RESULT_FILE).is_file()), None)
    if path is None:
        return None
    found = parse_json(read_text_file(path))
    if not isinstance(found, dict) or found.get("system") != system or not is_result(found):
        raise ValueError(
            f"{path} is no result of {system}: expected what `write_result` of aurora_rl/evaluation/figures.py writes"
        )
    return {**found, "table": read_text_file(path.with_name(TABLE_FILE))}


def is_result(found: Mapping[str, Any]) -> bool:
    """Return whether a file's content has the form of a result."""
    forms = {"size": str, "numbers": dict, "figures": list}
    if not all(isinstance(found.get(name), form) for name, form in forms.items()):
        return False
    names = {field.name for field in dataclasses.fields(Figure)}
    return all(isinstance(figure, dict) and names <= figure.keys() for figure in found["figures"])


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
    with parser.refusing():
        check_folder(args.stages, name="--stages")
        results = {system: read_result(args.stages, system) for system in SYSTEMS}
    content = {system: to_object(result) for system, result in results.items()}
    with whole_files(args.stages / "results.json", args.stages / "results.md") as (numbers, page):
        numbers.write((json.dumps(content, indent=2) + "\n").encode())
        page.write((markdown(results) + "\n").encode())
    print(summary(results))


if __name__ == "__main__":
    main()
