"""Checks that the rewards, the task and other objects that a recipe names exist, without importing them or torch.

`named.objects.load_object` imports those that pass here. Files are read as text, so that none of their code runs. That
function finds errors that the text does not show, for example in names that a module makes while it is imported.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from aurora_rl.files.existing import check_file, did_you_mean
from aurora_rl.files.plain import read_text_file
from aurora_rl.named.moved import new_place
from aurora_rl.named.objects import example_name

#: Calls by which a module may define names that its text does not show.
DYNAMIC = {"globals", "setattr", "exec", "vars", "locals", "__getattr__"}


def check_object(spec: str, *, name: str, what: str) -> None:
    """Check that the file or module of an object exists and defines the object.

    Args:
        spec: the object, `package.module:name` or `path/to/file.py:name`.
        name: name of the option or key, for the error.
        what: kind of object, such as "reward" or "task", for the error.

    Raises:
        ValueError: if it does not; the error names what is missing.
    """
    place, colon, attribute = spec.rpartition(":")
    if not (colon and place and attribute):
        example = example_name(what)
        raise ValueError(f"{name} has {spec!r}: write 'package.module:{example}' or 'path/to/file.py:{example}'")
    if place.endswith(".py"):
        check_file(place, name=f"{name}: the {what} file")
        file: Path | None = Path(place)
    else:
        file = _module_file(place, name=name, what=what)
    defined = None if file is None else _defined_names(file)
    if defined is not None and attribute not in defined:
        hint = did_you_mean(attribute, defined) or f"; it has {', '.join(sorted(defined)) or 'nothing'}"
        raise ValueError(f"{name} has {spec!r}: {place} defines no {attribute!r}{hint}")


def _module_file(module: str, *, name: str, what: str) -> Path | None:
    """Return the source file of a module; None if only importing its packages would show it."""
    first, *rest = module.split(".")
    spec = importlib.util.find_spec(first) if first.isidentifier() else None
    if spec is None:
        raise ValueError(f"{name}: there is no module {first!r} (of {module!r}): {_advice(module, what)}")
    origin, folders = spec.origin, spec.submodule_search_locations
    for part in rest:
        found = None if folders is None else _in_folders([Path(folder) for folder in folders], part)
        if found is None:
            raise ValueError(f"{name}: there is no module {module!r}: {_advice(module, what)}")
        origin, folders = (str(found), None) if found.is_file() else (str(found / "__init__.py"), [str(found)])
    return Path(origin) if origin is not None and Path(origin).suffix == ".py" and Path(origin).is_file() else None


def _in_folders(folders: list[Path], part: str) -> Path | None:
    """Find a module's folder or file (a compiled one counts too) in some folders, in Python's order."""
    for folder in folders:
        files = sorted(folder.glob(f"{part}.*"), key=lambda file: file.suffix != ".py")
        is_package = (folder / part / "__init__.py").is_file()
        if not is_package and files:
            return files[0]
        if (folder / part).is_dir():
            return folder / part
    return None


def _advice(module: str, what: str) -> str:
    moved = new_place(module)
    if moved:
        return f"it is {moved!r} now"
    return f"install it, or name a file, as in 'path/to/file.py:{example_name(what)}'"


def _defined_names(file: Path) -> set[str] | None:
    """List the public names that a file defines or imports; None if its code may define others."""
    try:
        tree = ast.parse(read_text_file(file))
    except (SyntaxError, ValueError, OSError):
        return None  # importing it will show the error
    defined: set[str] = set()
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name):
            (defined if isinstance(node.ctx, ast.Store) else used).add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    if (defined | used) & (DYNAMIC | {"*"}):
        return None
    return {name for name in defined if not name.startswith("_")}
