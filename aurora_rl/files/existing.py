"""Checks that the paths of a command line can be read or written, before anything slow is loaded.

An error about a missing path names the nearest parent that exists and a few of its entries.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from aurora_rl.files.plain import NotPlainFileError, check_plain_file

NUM_SHOWN = 6  # largest number of a folder's entries in a message

AnyPath = str | os.PathLike[str]


class UnusablePathError(ValueError):
    """A path cannot be read or written; the text names it and what to do."""


def check_folder(path: AnyPath, *, name: str) -> None:
    """Check that a folder exists.

    Args:
        path: path of the folder.
        name: name of the option or key that gave it, for the error.

    Raises:
        UnusablePathError: if it does not; the error names the option and the nearest folder that exists.
    """
    if os.path.isdir(path):
        return
    if os.path.exists(path):
        raise UnusablePathError(f"{name} {path} is no folder but a file: give the folder that holds it")
    raise UnusablePathError(f"{name} {path} does not exist: {what_is_there(path)}")


def check_existing(path: AnyPath, *, name: str) -> None:
    """Check that a file or folder exists; the arguments and errors are those of `check_folder`."""
    if not os.path.exists(path):
        raise UnusablePathError(f"{name} {path} does not exist: {what_is_there(path)}")


def check_file(path: AnyPath, *, name: str) -> None:
    """Check that a plain file exists; the arguments and errors are those of `check_folder`."""
    try:
        check_plain_file(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UnusablePathError(f"{name} {path} does not exist: {what_is_there(path)}") from None
    except (NotPlainFileError, OSError) as error:
        raise UnusablePathError(f"{name}: {error}") from error
    if not os.access(path, os.R_OK):
        raise UnusablePathError(f"{name} {path} may not be read by this user: change its permissions")


def check_writable_folder(path: AnyPath, *, name: str) -> None:
    """Check that files can be written into a folder, which may be new; nothing is made.

    Args:
        path: path of the folder.
        name: name of the option or key that gave it, for the error.

    Raises:
        UnusablePathError: if a part of the path is a file, or this user may not write there.
    """
    nearest = nearest_existing(path)
    if not nearest.is_dir():
        raise UnusablePathError(f"{name} {path} cannot be written: {nearest} is a file, give another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UnusablePathError(f"{name} {path} cannot be written: this user may not write to {nearest}")


def check_writable_file(path: AnyPath, *, name: str) -> None:
    """Check that a file can be written or replaced; nothing is made, errors as in `check_writable_folder`."""
    if os.path.isdir(path):
        raise UnusablePathError(f"{name} {path} is a folder: give the name of a file")
    check_writable_folder(Path(path).parent, name=f"{name} {path}: its folder")


def check_new_file(path: AnyPath, *, name: str) -> None:
    """Check that a file can be written and replaces none; nothing is made, errors as in `check_writable_folder`."""
    if os.path.lexists(path):
        raise UnusablePathError(f"{name} {path} is there already: name another one, or delete it")
    check_writable_file(path, name=name)


def what_is_there(path: AnyPath) -> str:
    """Describe the nearest existing parent of a missing path, with the entries most similar to the missing one."""
    path = Path(path)
    nearest = nearest_existing(path)
    if not nearest.is_dir():
        return f"{nearest} is a file, not a folder"
    missing = path.absolute().relative_to(nearest.absolute()).parts[0]
    place = "this folder" if nearest == Path() else str(nearest)
    return f"{place} holds {entries(nearest, like=missing)}{did_you_mean(missing, _names(nearest))}"


def nearest_existing(path: AnyPath) -> Path:
    """Return the path itself or its nearest parent that exists, relative if the path is."""
    path = Path(path)
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def entries(folder: AnyPath, *, like: str = "") -> str:
    """List a few names of a folder's entries, folders with a slash; those similar to `like` come first."""
    names = _names(Path(folder))
    if not names:
        return "nothing"
    similar = difflib.get_close_matches(like, names, n=NUM_SHOWN) if like else []
    ordered = [*similar, *(name for name in names if name not in similar)]
    shown = [f"{name}/" if os.path.isdir(os.path.join(folder, name)) else name for name in ordered[:NUM_SHOWN]]
    more = len(ordered) - len(shown)
    return f"{', '.join(shown)}{f' and {more} more' if more else ''}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error, such as ", did you mean 'fps'?"; empty if no known word is similar."""
    similar = difflib.get_close_matches(word, sorted(known), n=1)
    return f", did you mean {similar[0]!r}?" if similar else ""


def _names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []
