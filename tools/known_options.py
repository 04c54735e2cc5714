"""Write `aurora_rl/assembly/known_options.json`: the options of scripts whose parsers take seconds to import.

    python tools/known_options.py

A test compares the file with the parsers; run this script when it fails.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a script, Python looks in this file's folder
    sys.path.append(str(ROOT))

from aurora_rl.assembly.known_options import FILE, LIBRARIES, SAVED_MASKS  # noqa: E402
from aurora_rl.evaluation.ablations import ABLATIONS  # noqa: E402
from aurora_rl.models.heads import HEADS  # noqa: E402
from aurora_rl.models.heads.segmenters import SEGMENTERS  # noqa: E402
from tools.script_parser import script_parser  # noqa: E402

#: Scripts whose command line is checked before they import torch.
SCRIPTS = (
    *(f"recipes/{name}.py" for name in ("sft", "grpo", "evaluate", "init_tiny", "agents")),
    *(
        f"data_prep/{name}.py"
        for name in ("cache_features", "teacher_features", "collect_mistakes", "pass_rates", "tool_table")
    ),
    *(f"data_prep/{name}.py" for name in ("generate_cot", "correct_cot", "tool_table_by_endpoint", "to_hf_dataset")),
)
#: Lists that YAML files may give as a single text, which the trainer accepts.
ONE_OR_MORE = ("reward_funcs",)
TYPES = {"int": "int", "float": "float", "string_to_bool": "bool"}  # by the name of the function that converts a word


def known_options() -> dict[str, Any]:
    """Return the classes that each script reads, the options of each class, and the names of registries."""
    parsers: dict[str, Any] = {script: script_parser(script) for script in SCRIPTS}
    classes: dict[str, dict[str, Any]] = {}
    for parser in parsers.values():
        for cls in parser.dataclass_types:
            hints = typing.get_type_hints(cls)
            classes[cls.__name__] = _options([action for action in parser._actions if action.dest in hints], hints)
    return {
        "versions": {library: importlib.metadata.version(library) for library in LIBRARIES},
        "scripts": {script: [cls.__name__ for cls in parser.dataclass_types] for script, parser in parsers.items()}
        | {SAVED_MASKS: ["DataArguments"]},
        "names": {"segmenter": [*SEGMENTERS], "head": [*HEADS], "ablations": [*ABLATIONS]},
        "classes": classes,
    }


def _options(actions: list[argparse.Action], hints: dict[str, Any]) -> dict[str, dict[str, Any]]:
    options: dict[str, dict[str, Any]] = {}
    for action in actions:
        if action.nargs == 0:  # --no_<name>
            options[action.dest]["can_be_negated"] = True
        else:
            options[action.dest] = _option(action, hints[action.dest])
    return options


def _option(action: argparse.Action, hint: Any) -> dict[str, Any]:
    described: dict[str, Any] = {"type": TYPES.get(getattr(action.type, "__name__", ""), "str")}
    alternatives = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if action.nargs is not None:
        described["nargs"] = action.nargs
    if action.nargs == "+" and (str in alternatives or action.dest in ONE_OR_MORE):
        described["may_be_text"] = True
    if action.choices is not None:
        described["choices"] = [str(choice) for choice in action.choices]
    if type(None) in alternatives:
        described["may_be_none"] = True
    if action.required:
        described["required"] = True
    aliases = sorted({name.lstrip("-").replace("-", "_") for name in action.option_strings} - {action.dest})
    return described | ({"aliases": aliases} if aliases else {})


def as_text(content: dict[str, Any]) -> str:
    """Format the content as JSON with one line an option, so that a change is one line of a diff."""
    lines = [f'  "{name}": {json.dumps(content[name])}' for name in ("versions", "scripts", "names")]
    classes = [
        f"    {json.dumps(cls)}: {{\n"
        + ",\n".join(f"      {json.dumps(name)}: {json.dumps(option)}" for name, option in options.items())
        + "\n    }"
        for cls, options in content["classes"].items()
    ]
    lines.append('  "classes": {\n' + ",\n".join(classes) + "\n  }")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(as_text(known_options()), encoding="utf-8")
    print(f"{FILE.relative_to(ROOT)} is written")
