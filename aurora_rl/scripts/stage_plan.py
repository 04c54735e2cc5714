"""The plan of a file of stages: each one's command, and the stages that it needs. `run_stages.py` runs it.

output_dir: outputs/full
stages:
  teacher:                          # folder outputs/full/teacher
    launch: recipes/sft.py          # under `accelerate launch`; a plain script is named by `run`
    config: recipes/synthetic/teacher.yaml
    options: {model: "{init}", output_dir: "{here}"}    # needs the stage init, and gets its folder
    outputs: [model.safetensors]    # in its own folder; checked before they are used again
  sft:
    each: {seed: [0, 1, 2]}         # three stages, sft-0, sft-1 and sft-2
    options: {teacher: "{teacher}", seed: "{seed}", ...}
    ...

A file that names another as its `base` gives what differs: keys of the file, of its stages, and single options.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import os
import string
import sys
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

from aurora_rl.files.fingerprint import fingerprint_values
from aurora_rl.files.packaged import find_config, find_launch, find_packaged, short_path
from aurora_rl.files.plain import read_text_file

#: Keys of a stage in the file.
STAGE_KEYS = {"run", "launch", "config", "options", "outputs", "each", "needs", "resumable"}
DEFAULT_LAUNCH = "accelerate_configs/cpu.yaml"
TOP_KEYS = {"output_dir", "accelerate_config", "stages"}


class PlanError(ValueError):
    """A file of stages is invalid, or a folder does not belong to it."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: name of the stage and of its folder.
        folder: folder of its outputs.
        command: command of the stage, without the options that resume it.
        config: YAML file of the recipe, whose content belongs to the stage's identity.
        outputs: files that it must write, relative to the folder or absolute.
        needs: names of the stages that must be complete before it.
        resumable: whether it can resume from a checkpoint in its folder (`--resume_from_checkpoint true`).
    """

    name: str
    folder: Path
    command: tuple[str, ...]
    config: Path | None
    outputs: tuple[str, ...]
    needs: tuple[str, ...]
    resumable: bool


@dataclasses.dataclass(frozen=True)
class Plan:
    """All stages by name; each comes after those it needs."""

    output_dir: Path
    stages: dict[str, Stage]

    def digest(self, name: str) -> str:
        """Hash the commands and configs of a stage and of the stages it needs.

        The hash covers neither the code nor files that no stage makes.
        """
        stage = self.stages[name]
        config = "" if stage.config is None else read_text_file(stage.config)
        parts = [tuple(map(short_path, stage.command[1:])), config, [self.digest(needed) for needed in stage.needs]]
        return fingerprint_values(parts)

    def until(self, names: Sequence[str]) -> Plan:
        """Return the plan of these stages and all that they need, directly or not.

        Raises:
            PlanError: if there is no stage of a name.
        """
        self.check_names(names)
        wanted = set(names)
        for name in reversed(self.stages):  # every stage comes before those it needs
            wanted |= set(self.stages[name].needs) if name in wanted else set()
        return Plan(self.output_dir, {name: stage for name, stage in self.stages.items() if name in wanted})

    def check_names(self, names: Sequence[str]) -> None:
        """Raise a `PlanError` unless all names are stages."""
        if unknown := sorted(set(names) - set(self.stages)):
            raise PlanError(f"no stage is named {unknown}, the stages are {', '.join(self.stages)}")

    def final_outputs(self) -> list[Path]:
        """List the outputs of the stages that no other stage needs."""
        needed = {name for stage in self.stages.values() for name in stage.needs}
        last = [stage for name, stage in self.stages.items() if name not in needed]
        return [Path(os.path.normpath(stage.folder / output)) for stage in last for output in stage.outputs]

    def graph(self) -> TopologicalSorter[str]:
        """Return the graph of the stages' needs, which `graphlib` sorts."""
        return TopologicalSorter({name: stage.needs for name, stage in self.stages.items()})


@dataclasses.dataclass(frozen=True)
class _Draft:
    """A stage of the file with one choice of its `each`; its name is that of its folder, such as `eval/grpo`."""

    kind: str
    values: Mapping[str, Any]
    fields: Mapping[str, Any]

    @property
    def name(self) -> str:
        return "-".join([self.kind, *map(str, self.values.values())])


def read_plan(path: str | Path, *, output_dir: str | Path | None = None, launch: str | None = None) -> Plan:
    """Read the plan of a file of stages.

    Args:
        path: the YAML file.
        output_dir: folder to use instead of the file's.
        launch: config of `accelerate launch` to use instead of the file's: a path, or a packaged one's name.

    Raises:
        PlanError: if a key is unknown, a stage needs one that does not exist, or stages need one another.
    """
    content = _read_content(find_config(str(path)))
    root = Path(output_dir or content["output_dir"])
    drafts = [draft for kind, fields in content["stages"].items() for draft in _drafts(kind, fields)]
    launcher = ["-m", "accelerate.commands.launch"]
    launcher += ["--config_file", find_launch(launch or str(content.get("accelerate_config", DEFAULT_LAUNCH)))]
    stages = [_build(draft, drafts, root, launcher) for draft in drafts]
    plan = Plan(root, {stage.name: stage for stage in stages})
    try:
        order = list(plan.graph().static_order())
    except CycleError as error:
        raise PlanError(f"these stages need one another: {' -> '.join(error.args[1])}") from error
    return Plan(root, {name: plan.stages[name] for name in order})


def _read_content(path: str | Path) -> dict[str, Any]:
    """Read a file of stages; its keys override those of its `base`, which may not have a base itself."""
    content = _load(path)
    if not isinstance(content, dict) or "base" not in content:
        _check_keys(f"{path}", content, TOP_KEYS, required={"output_dir", "stages"})
        return content
    _check_keys(f"{path}", content, {"base", *TOP_KEYS}, required=set())
    base = _load(find_config(str(content.pop("base"))))
    _check_keys(f"base of {path}", base, TOP_KEYS, required={"output_dir", "stages"})
    stages = dict(base["stages"])
    for kind, fields in content.get("stages", {}).items():
        below = stages.get(kind, {})
        stages[kind] = {**below, **fields, "options": {**below.get("options", {}), **fields.get("options", {})}}
    return {**base, **content, "stages": stages}


def _load(path: str | Path) -> Any:
    try:
        return yaml.safe_load(read_text_file(path))
    except (FileNotFoundError, yaml.YAMLError) as error:
        raise PlanError(f"{path} is no file of stages ({error}): name one, such as demo.yaml") from error


def _drafts(kind: str, fields: Mapping[str, Any]) -> Iterator[_Draft]:
    _check_keys(f"stage {kind}", fields, STAGE_KEYS, required=set())
    if ("run" in fields) == ("launch" in fields):
        raise PlanError(f"stage {kind}: name its script by either `run` or `launch`")
    each = fields.get("each", {})
    for values in itertools.product(*each.values()):
        draft = _Draft(kind, dict(zip(each, values, strict=True)), fields)
        if {"", ".", ".."} & set(draft.name.split("/")):  # --redo deletes this folder
            raise PlanError(f"{draft.name!r} is no name of a stage: expected that of its folder inside `output_dir`")
        yield draft


def _check_keys(place: str, content: Any, known: set[str], *, required: set[str]) -> None:
    if not isinstance(content, dict):
        raise PlanError(f"{place}: expected keys and values, not {content!r}")
    if unknown := sorted(set(content) - known):
        raise PlanError(f"{place}: unknown key(s) {unknown}, expected some of {sorted(known)}")
    if missing := sorted(required - set(content)):
        raise PlanError(f"{place}: the key(s) {missing} are missing")


def _build(draft: _Draft, drafts: Sequence[_Draft], root: Path, launcher: Sequence[str]) -> Stage:
    fields = draft.fields
    words = _Words(draft, drafts, root)
    config = find_config(words.fill(fields["config"])) if "config" in fields else None
    command = [
        sys.executable,
        *(launcher if "launch" in fields else []),
        find_packaged(words.fill(fields.get("launch") or fields["run"])),
    ]
    command += [] if config is None else ["--config", config]
    for name, value in fields.get("options", {}).items():
        command += [f"--{name}", *(words.fill(part) for part in (value if isinstance(value, list) else [value]))]
    outputs = tuple(words.fill(output) for output in fields.get("outputs", []))
    named = {name for pattern in fields.get("needs", []) for name in _matching(draft, words.fill(pattern), drafts)}
    return Stage(
        name=draft.name,
        folder=root / draft.name,
        command=tuple(command),
        config=None if config is None else Path(config),
        outputs=outputs,
        needs=tuple(sorted(named | words.referred)),
        resumable=bool(fields.get("resumable", False)),
    )


def _matching(draft: _Draft, pattern: str, drafts: Sequence[_Draft]) -> list[str]:
    names = [other.name for other in drafts if fnmatch.fnmatchcase(other.name, pattern) and other is not draft]
    if not names:
        raise PlanError(f"stage {draft.name} needs {pattern!r}: no stage has such a name")
    return names


class _Words:
    """Fills `{here}`, `{output_dir}`, the stage's own `{seed}` and `{other_stage}`; records the named stages."""

    def __init__(self, draft: _Draft, drafts: Sequence[_Draft], root: Path) -> None:
        self.draft, self.drafts, self.root = draft, drafts, root
        self.referred: set[str] = set()

    def fill(self, text: Any) -> str:
        """Replace the fields of a text; YAML's true and false are written in lower case."""
        if isinstance(text, bool):
            return str(text).lower()
        parts = string.Formatter().parse(str(text))
        return "".join(literal + ("" if field is None else self._value(field)) for literal, field, _, _ in parts)

    def _value(self, field: str) -> str:
        own = {"here": self.root / self.draft.name, "output_dir": self.root, **self.draft.values}
        if field in own:
            return str(own[field])
        shared = [
            other
            for other in self.drafts
            if other.kind == field and all(self.draft.values.get(k, v) == v for k, v in other.values.items())
        ]
        if len(shared) != 1:
            found = f"{len(shared)} stages of that name fit" if shared else "there is no such stage or value"
            raise PlanError(f"stage {self.draft.name} refers to {{{field}}}: {found}")
        self.referred.add(shared[0].name)
        return str(self.root / shared[0].name)
