"""Objects that a config names, rewards and tasks among them: 'package.module:name' or 'path/to/file.py:name'."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from aurora_rl.named.moved import new_place

#: Beginning of the name of a module that is a file; the file's path follows.
FILE_PREFIX = "named_file:"


class NamedObjectError(ValueError):
    """A name in a config leads to no object."""


def load_object(spec: str, *, what: str) -> Any:
    """Import what a config names; this runs the code of that module or file.

    Args:
        spec: `"package.module:name"` or `"path/to/file.py:name"`.
        what: kind of object, such as "reward function", for errors.

    Returns:
        The object.

    Raises:
        NamedObjectError: if the module or file is not found or lacks the attribute.
    """
    module_name, colon, attribute = spec.rpartition(":")
    if not (colon and module_name and attribute):
        name = example_name(what)
        raise NamedObjectError(f"{spec!r} names no {what}: write 'package.module:{name}' or 'path/to/file.py:{name}'")
    is_file = module_name.endswith(".py")
    module = _load_file(Path(module_name), what) if is_file else _load_module(module_name, what)
    if not hasattr(module, attribute):
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise NamedObjectError(f"{module_name} has no {attribute!r} (asked for by {spec!r}); it has {public}")
    return getattr(module, attribute)


def name_of(found: type) -> str:
    """Return the name by which another process can load a class: `load_object` takes it.

    >>> from fractions import Fraction
    >>> name_of(Fraction)
    'fractions:Fraction'
    """
    return f"{found.__module__.removeprefix(FILE_PREFIX)}:{found.__qualname__}"


def example_name(what: str) -> str:
    """Return a name for the example of an error: a reward and a loader are functions, other objects are classes."""
    return "load" if what == "loader" else "function" if what.startswith("reward") else "Name"


def _load_module(name: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module missing *inside* the named module is another problem and keeps its own traceback.
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise
        moved = new_place(name)
        advice = f"it is {moved!r} now" if moved else "install it, or name the file 'path/to/file.py'"
        raise NamedObjectError(f"no module named {error.name!r} for the {what} {name!r}: {advice}") from error


def _load_file(path: Path, what: str) -> ModuleType:
    if not path.is_file():
        raise NamedObjectError(f"the {what}'s file {str(path)!r} does not exist (looked in {str(Path.cwd())!r})")
    # The key is the full path: two objects of one file share its state, and two files of one name do not collide.
    name = f"{FILE_PREFIX}{path.resolve()}"
    if name in sys.modules:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None and module_spec.loader is not None  # holds for every *.py path
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # before execution: dataclasses look their module up
    try:
        module_spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
