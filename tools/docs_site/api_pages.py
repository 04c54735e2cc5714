"""MkDocs hook: an API page for each public module, made from its docstrings without importing it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("aurora_rl", "reward_fns")
FOLDER = "reference"
#: Title of the reference in the navigation.
NAV_TITLE = "API"

INTRODUCTION = """\
# API reference

Made from the docstrings of {packages}. Shapes use these letters: B rows, G generations, L tokens, F frames, H W pixels,
D hidden size, C width of a mask decoder's prompt. A name says whether it holds `mask_logits`, `mask_probs` or
`pred_masks` (bool).

| module | |
|---|---|
"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the modules' pages to the navigation, package by package."""
    assert config.nav is not None
    config.nav.append({NAV_TITLE: [f"{FOLDER}/index.md", *_navigation()]})
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add a page for each module, and a list of all modules."""
    table = []
    for module, summary in modules():
        page = f"# `{module}`\n\n::: {module}\n"
        files.append(File.generated(config, _page(module), content=page))
        table.append(f"| [`{module}`]({module}.md) | {summary} |\n")
    introduction = INTRODUCTION.format(packages=" and ".join(f"`{package}`" for package in PACKAGES))
    files.append(File.generated(config, f"{FOLDER}/index.md", content=introduction + "".join(table)))
    return files


def modules() -> Iterator[tuple[str, str]]:
    """Yield the public modules with the first paragraph of their docstrings."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            summary = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            if parts[-1] != "__main__":
                yield name, " ".join(summary.partition("\n\n")[0].split()).replace("|", "\\|")


def _page(module: str) -> str:
    return f"{FOLDER}/{module}.md"


def _navigation() -> list[dict[str, Any]]:
    """List `{"aurora_rl.data": [pages]}` for each package, in order of name, with the package's own page first."""
    groups: dict[str, list[dict[str, str]]] = {}
    for module, _ in modules():
        is_package = (ROOT / module.replace(".", "/")).is_dir()
        package = module if is_package else module.rpartition(".")[0]
        title = "the package" if is_package else module.rpartition(".")[2]
        groups.setdefault(package, []).append({title: _page(module)})
    return [{package: pages} for package, pages in sorted(groups.items())]
