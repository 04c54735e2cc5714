"""The shipped YAMLs, and the command of each one's first comment."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
RECIPES = {str(path.relative_to(ROOT / "recipes").with_suffix("")): path for path in ROOT.glob("recipes/**/*.yaml")}
#: What a recipe takes over from the one whose model it goes on from.
GOES_ON = ("model", "segmenter", "use_peft", "lora_modules_to_save")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A YAML and the command of its first comment."""

    name: str

    @property
    def content(self) -> dict[str, Any]:
        return yaml.safe_load(RECIPES[self.name].read_text())

    @property
    def command(self) -> list[str]:
        return shlex.split(RECIPES[self.name].read_text().splitlines()[0].removeprefix("# "))

    @property
    def lane(self) -> str:
        """Stem of the accelerate config; a plain `python` command counts as one process."""
        return next((Path(word).stem for word in self.command if word.startswith("accelerate_configs/")), "cpu")

    @property
    def script(self) -> str:
        return next(word for word in self.command if word.endswith(".py"))

    @property
    def samples_by_vllm(self) -> bool:
        return bool(self.content.get("use_vllm"))

    @property
    def base(self) -> dict[str, Any]:
        """The content with what it takes over from the recipe whose model it goes on from."""
        model = self.content.get("model", "")
        for name in RECIPES:
            folder = Recipe(name).content.get("output_dir") if name != self.name else None
            if folder and "stages" not in Recipe(name).content and (model == folder or model.startswith(f"{folder}/")):
                earlier = Recipe(name).base
                return {**{key: earlier.get(key) for key in GOES_ON}, **self.own_choices}
        return self.content

    @property
    def own_choices(self) -> dict[str, Any]:
        return {key: value for key, value in self.content.items() if key != "model"}

    @property
    def kind(self) -> tuple[Any, ...]:
        """All that decides how a step runs."""
        base = self.base
        return (
            self.script,
            self.lane,
            re.sub(r"-\d+B$", "", base.get("model") or "tiny"),
            (base.get("segmenter") or {}).get("type", "dot"),
            bool(base.get("use_peft")),
            bool(self.content.get("gradient_checkpointing")),
            self.content.get("beta"),
            self.content.get("target", "chain"),
            self.samples_by_vllm,
        )
