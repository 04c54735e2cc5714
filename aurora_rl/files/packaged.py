"""Files that come with the package: those of `recipes/`, `data_prep/` and `accelerate_configs/`.

In a checkout they lie in its root, in an install inside the package. A path such as `recipes/grpo.py` means the working
directory's own file where there is one.
"""

from __future__ import annotations

import os
from pathlib import Path

FOLDERS = ("recipes", "data_prep", "accelerate_configs")


def packaged_root() -> Path:
    """Return the folder that holds `FOLDERS`: the package in an install, its parent in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package if (package / FOLDERS[0]).is_dir() else package.parent


def find_packaged(path: str) -> str:
    """Return a path as it is if something is there or it means no packaged file, otherwise the packaged file's path.

    Args:
        path: path of a file of `FOLDERS`, such as `recipes/grpo.py`, or any other.
    """
    relative = Path(path)
    is_ours = relative.parts[:1] and relative.parts[0] in FOLDERS and ".." not in relative.parts
    if relative.exists() or not is_ours or not (packaged_root() / relative).is_file():
        return path
    return str(packaged_root() / relative)


def short_path(path: str) -> str:
    """Return a packaged file's path as it is in a checkout's root; any other text as it is."""
    return path.removeprefix(f"{packaged_root()}{os.sep}")


def find_config(name: str) -> str:
    """Return the path of a recipe's YAML file.

    Args:
        name: path of a file, or the name of a packaged one: `recipes/ref_avs/grpo_7b.yaml` or `ref_avs/grpo_7b`.
            A name that means neither is returned as it is, for the reader's error.
    """
    found = find_packaged(name)
    if found != name or Path(name).exists():
        return found
    short = name.removesuffix(".yaml")
    return str(packaged_root() / f"recipes/{short}.yaml") if short in recipe_names() else name


def recipe_names() -> list[str]:
    """List the packaged recipes by name, such as `ref_avs/grpo_7b`."""
    root = packaged_root() / "recipes"
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.glob("**/*.yaml"))


def script_names() -> list[str]:
    """List the packaged scripts by their paths, such as `data_prep/generate_cot.py`."""
    return sorted(f"{folder}/{path.name}" for folder in FOLDERS for path in (packaged_root() / folder).glob("*.py"))


def launch_names() -> list[str]:
    """List the packaged configs of `accelerate launch` by name, such as `zero2`."""
    return sorted(path.stem for path in (packaged_root() / "accelerate_configs").glob("*.yaml"))


def find_launch(name: str) -> str:
    """Return the path of a config of `accelerate launch`: a file, or a packaged one by its name, such as `zero2`."""
    if name in launch_names() and not Path(name).is_file():
        return find_packaged(f"accelerate_configs/{name}.yaml")
    return find_packaged(name)
