"""MkDocs hook: every key of every recipe and tool, and every option of the commands, from their parsers."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # a hook is run from its own folder
    sys.path.append(str(ROOT))

from aurora_rl.assembly.parser import INHERITED, inherited_from, own_fields, summary  # noqa: E402
from tools.script_parser import script_parser  # noqa: E402

SCRIPTS = [
    "recipes/sft.py",
    "recipes/grpo.py",
    "recipes/grpo_by_hand.py",
    "recipes/evaluate.py",
    "recipes/agents.py",
    "recipes/init_tiny.py",
    "recipes/report.py",
    "recipes/run_stages.py",
    "recipes/compare_answers.py",
    "recipes/compare_listening.py",
    "recipes/compare_stages.py",
    "recipes/count_matchers.py",
    "recipes/check_agents.py",
    "recipes/gather_seeds.py",
    "recipes/compare_orders.py",
    "recipes/tool_choices.py",
    "recipes/when_to_call.py",
    "data_prep/make_synthetic.py",
    "data_prep/make_sounds.py",
    "data_prep/generate_cot.py",
    "data_prep/verify_cot.py",
    "data_prep/correct_cot.py",
    "data_prep/collect_mistakes.py",
    "data_prep/pass_rates.py",
    "data_prep/tool_table.py",
    "data_prep/tool_table_by_endpoint.py",
    "data_prep/make_tool_questions.py",
    "data_prep/make_window_questions.py",
    "data_prep/teacher_features.py",
    "data_prep/cache_features.py",
    "data_prep/to_hf_dataset.py",
    "benchmarks/step_cost.py",
    "benchmarks/hooks.py",
    "benchmarks/wrong_input.py",
    "benchmarks/reward_time.py",
    "benchmarks/idle_share.py",
    "benchmarks/gpu_step.py",
    "benchmarks/packed_kernels.py",
    "benchmarks/f_measure.py",
    "benchmarks/vllm_parity.py",
    "benchmarks/vllm_caches.py",
    "benchmarks/reward_threads.py",
    "benchmarks/weight_sync.py",
]
COMMAND = "aurora_rl/cli/__main__.py"
#: Starts of a command.
PROGRAMS = ("accelerate ", "aurora-rl ", "python ", "vllm ")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the two pages."""
    files.append(File.generated(config, "configuration.md", content=configuration_page()))
    files.append(File.generated(config, "commands.md", content=commands_page()))
    return files


# ------------------------------------------------------------------------------------- keys of YAML files

CONFIGURATION = """\
# Configuration

Every key of a recipe's YAML file is also an option of its command line, which wins: `--learning_rate 1e-5`. A key that
no class below knows is an error. Keys without a default must be given. Made from the dataclasses when this site is
built.

| script | reads |
|---|---|
"""


def configuration_page() -> str:
    """Return the page: the classes that each script reads, then each class with its keys."""
    read = {script: getattr(script_parser(script), "dataclass_types", []) for script in SCRIPTS}
    classes = list(dict.fromkeys(cls for kinds in read.values() for cls in kinds))
    lines = [
        f"| `{script}` | {', '.join(f'[{cls.__name__}](#{cls.__name__.lower()})' for cls in kinds)} |\n"
        for script, kinds in read.items()
        if kinds
    ]
    return CONFIGURATION + "".join(lines) + "".join(_class_section(cls) for cls in classes)


def _class_section(cls: type) -> str:
    own = own_fields(cls)
    documented = attribute_texts(cls)
    types = typing.get_type_hints(cls)
    rows = (
        _row(field.name, _type_name(types[field.name]), _default(field), _meaning(field, documented)) for field in own
    )
    return f"\n## {cls.__name__}\n\n{summary(cls)}\n\n{_table('key', rows)}{_inherited(cls, own)}"


def attribute_texts(cls: type) -> dict[str, str]:
    """Return the text of each attribute, from the section `Attributes:` of a class's docstring."""
    _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    texts: dict[str, str] = {}
    name = ""
    for line in section.split("\n\n")[0].splitlines():
        if entry := re.fullmatch(r" {4}(\w+): (.*)", line):
            name = entry[1]
            texts[name] = entry[2]
        elif name:
            texts[name] += f" {line.strip()}"
    return texts


def _inherited(cls: type, own: list[dataclasses.Field]) -> str:
    base = inherited_from(cls)
    if base is None:
        return ""
    names = {field.name for field in own}
    others = sorted(field.name for field in dataclasses.fields(cls) if field.name not in names and field.init)
    listed = ", ".join(f"`{name}`" for name in others)
    return f'\n??? note "{len(others)} more keys, of TRL\'s {base}"\n    See [{base}]({INHERITED[base]}): {listed}\n'


def _type_name(annotation: Any) -> str:
    name = annotation.__name__ if isinstance(annotation, type) and not typing.get_args(annotation) else str(annotation)
    return re.sub(r"\b(typing|pathlib|builtins)\.", "", name)


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return _value(field.default_factory())
    return "" if field.default is dataclasses.MISSING else _value(field.default)


def _meaning(field: dataclasses.Field, documented: dict[str, str]) -> str:
    help_text, text = field.metadata.get("help", ""), documented.get(field.name, "")
    more = text[:1].upper() + text[1:]
    return _escape(help_text) + (f"<br><small>{_escape(more)}</small>" if more not in ("", help_text) else "")


# ------------------------------------------------------------------------------------- options of commands

COMMANDS = """\
# Commands

Options of the programs that read no YAML file, made from their parsers when this site is built. Those that do are in
[Configuration](configuration.md); `aurora-rl evaluate` and `aurora-rl footprint` take such keys beside their own
options. Names are shown with underscores, and hyphens in them are read alike; abbreviations are errors.
"""


def commands_page() -> str:
    """Return the page: each sub-command of `aurora-rl`, then each script."""
    parser = script_parser(COMMAND, "--help")  # without any word it only lists the sub-commands
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    sections = [_command_section(f"aurora-rl {name}", sub) for name, sub in commands.choices.items()]
    scripts = [(script, script_parser(script)) for script in SCRIPTS]
    sections += [_command_section(script, p) for script, p in scripts if not getattr(p, "dataclass_types", [])]
    return COMMANDS + "".join(sections)


def _command_section(title: str, parser: argparse.ArgumentParser) -> str:
    rows = []
    for action in parser._actions:
        if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction):
            names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
            has_default = not action.required and action.default not in (None, argparse.SUPPRESS)
            default = _value(action.default) if has_default else ""
            text = (action.help or "").replace("%%", "%").replace("(default: %(default)s)", "").strip()
            rows.append(_row(names, _option_value(action), default, _escape(text)))
    return f"\n## {title}\n\n{_description(parser.description or '')}\n\n{_table('option', rows)}"


def _description(text: str) -> str:
    """Turn a program's description for a terminal into Markdown: join its lines, except those of its commands."""
    paragraphs = re.split(r"\n\s*\n", text.strip("\n"))
    return "\n\n".join(
        f"```bash\n{inspect.cleandoc(paragraph)}\n```"
        if all(line.startswith(("  ", *PROGRAMS)) for line in paragraph.splitlines())
        else _escape(" ".join(paragraph.split()))
        for paragraph in paragraphs
    )


def _option_value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return " or ".join(map(str, action.choices))
    named = " ".join(action.metavar) if isinstance(action.metavar, tuple) else action.metavar
    value = named or str(getattr(action.type, "__name__", "str")).strip("_")
    return f"{value} ..." if action.nargs in ("+", "*") else value


# ------------------------------------------------------------------------------------- tables


def _table(first: str, rows: Iterable[str]) -> str:
    return f"| {first} | type | default | |\n|---|---|---|---|\n{''.join(rows)}"


def _row(name: str, kind: str, default: str, meaning: str) -> str:
    cells = [f"`{text}`" if text else "" for text in (name, kind, default)]
    return f"| {' | '.join([*cells, meaning])} |\n"


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value.replace("\n", "\\n") or '""'
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Path):
        return str(value.relative_to(ROOT)) if value.is_relative_to(ROOT) else str(value)
    return str(list(value) if isinstance(value, tuple) else value)


def _escape(text: str) -> str:
    """Escape a text for a table's cell: characters of HTML and Markdown, and those that end the cell, outside code."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([\[*_|])", r"\\\1", part.replace("<", "&lt;")) for part in parts[::2]]
    return "`".join(parts)
