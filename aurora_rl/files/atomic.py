"""Atomic writing of files and folders, which are replaced whole or not at all.

A reader, and the next run, find the former one or the new one. If the disk is full the former one stays. Names of
temporary files begin with a dot; the next run removes a temporary folder that a killed process has left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from aurora_rl.files.output_lock import hold_output

#: Errors for a full disk, an exhausted quota and a file above the allowed size.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SUFFIX = ".tmp"  # end of a file's temporary name


def write_whole(path: str | Path, data: str | bytes, *, is_synced: bool = True) -> None:
    """Replace a file, or make it and its folder; text is written as UTF-8.

    Args:
        path: path of the file.
        data: content of the file.
        is_synced: whether to wait some milliseconds until the file is on the disk; False for thousands of small files
            of a cache, which a power failure may lose.

    Raises:
        OSError: if writing fails; the error names the file and what to do, and the former file is unchanged.
    """
    with whole_file(path, is_synced=is_synced) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def whole_file(path: str | Path, *, is_synced: bool = True) -> Iterator[IO[bytes]]:
    """Yield a file to write into, which replaces `path` at the end of the block unless the block raises.

    Raises:
        OSError: as `write_whole`.
    """
    with whole_files(path, is_synced=is_synced) as [file]:
        yield file


@contextlib.contextmanager
def whole_files(*paths: str | Path, is_synced: bool = True) -> Iterator[list[IO[bytes]]]:
    """Yield files that belong together: none is replaced before all are written.

    Raises:
        OSError: as `write_whole`.
    """
    targets = [Path(path).resolve() for path in paths]  # a link stays, its target is replaced
    try:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(nameless_file(target.parent)) for target in targets]
            yield files
            give_names(dict(zip(targets, files, strict=True)), is_synced=is_synced)
    except OSError as error:
        raise _explained(error, targets) from error


@contextlib.contextmanager
def nameless_file(folder: Path) -> Iterator[IO[bytes]]:
    """Yield a temporary file in a folder, removed at the end of the block unless `give_names` has named it."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{uuid.uuid4().hex}{SUFFIX}"
    try:
        with temporary.open("xb") as file:
            yield file
    finally:
        temporary.unlink(missing_ok=True)


def give_names(files: dict[Path, IO[bytes]], *, is_synced: bool = True) -> None:
    """Give temporary files their names, after all are written; they cannot be written to afterwards."""
    for file in files.values():
        file.flush()
        if is_synced:
            os.fsync(file.fileno())  # no name may survive a power failure without its content
    for path, file in files.items():
        os.replace(file.name, path)
    for folder in {path.parent for path in files} if is_synced else ():
        _sync(folder)


@contextlib.contextmanager
def whole_entries(folder: str | Path) -> Iterator[Path]:
    """Yield a folder, whose entries replace those of the same names in `folder` unless the block raises.

    None is replaced before all are on the disk; other entries of `folder` stay.

    Raises:
        OSError: as `write_whole`, if writing fails; an error of reading inside the block is raised unchanged.
    """
    target = Path(folder).resolve()
    scratch = target / f".{uuid.uuid4().hex}.tmp"
    new, former = scratch / "new", scratch / "former"
    try:
        new.mkdir(parents=True)
        former.mkdir()
        yield new
        for path in new.rglob("*"):
            _sync(path)
        _exchange(new, target, former)
        _sync(target)
        shutil.rmtree(former)
    except OSError as error:
        path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else target
        if error.errno not in FULL and not path.is_relative_to(scratch):
            raise
        named = target / path.relative_to(new) if path.is_relative_to(new) else target
        raise _explained(error, [named]) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        with contextlib.suppress(OSError):  # former entries that could not be put back stay here
            former.rmdir()
        with contextlib.suppress(OSError):
            scratch.rmdir()


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yield a folder beside `path`, which replaces it at the end of the block unless the block raises.

    A kill leaves one of both whole; a power failure may not, as the files are not synced one by one.

    Raises:
        OutputInUseError: if another run writes to it.
        OSError: if the disk is full, as `write_whole`.
    """
    path = Path(path).resolve()
    new, former = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.former")
    with hold_output(path, is_folder=False):
        if former.exists() and not path.exists():  # a process was killed between the two renamings
            former.rename(path)
        _remove_folders(new, former)
        new.mkdir()
        try:
            yield new
            replace_folder(path, new, former=former)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise _explained(error, [path]) from error
        finally:
            _remove_folders(new, former)


def replace_folder(path: Path, new: Path, *, former: Path) -> None:
    """Rename a complete folder to `path`, after renaming an existing one to `former`."""
    if not path.exists():
        new.rename(path)
        return
    path.rename(former)
    try:
        new.rename(path)
    except OSError:
        former.rename(path)
        raise


def _exchange(new: Path, target: Path, former: Path) -> None:
    """Move each entry of `new` into `target`, and the entries that they replace into `former`; all or none."""
    names = sorted(path.name for path in new.iterdir())
    try:
        for name in names:
            if os.path.lexists(target / name):
                os.replace(target / name, former / name)
            os.replace(new / name, target / name)
    except BaseException:
        for name in names:
            if not os.path.lexists(new / name):
                os.replace(target / name, new / name)
            if os.path.lexists(former / name):
                os.replace(former / name, target / name)
        raise


def _remove_folders(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    """Sync a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explained(error: OSError, targets: list[Path]) -> OSError:
    """Return the error with the files' names and what to do; an `OSError` of the same kind."""
    names = " and ".join(str(target) for target in targets)
    text = f"{names} cannot be written ({error.strerror or error}); what was there before is unchanged: "
    if error.errno in FULL:
        text += "free space there, or name another place, and run again"
    else:
        text += "check that the folder may be written to, or name another place, and run again"
    return OSError(error.errno, text)
