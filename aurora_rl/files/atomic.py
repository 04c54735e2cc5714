"""Files and folders that are replaced whole or not at all: results, tables, pages, caches, answers, benchmarks.

A reader, and the next run, find the former one or the new one. Where the disk is full the former one stays. What a
killed process leaves behind begins with a dot; what it leaves of a folder the next run removes.
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

#: No space on the disk, none left of a quota, a file above the allowed size.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SUFFIX = ".tmp"  # of a file that has not got its name yet


def write_whole(path: str | Path, data: str | bytes, *, is_synced: bool = True) -> None:
    """Replace a file, or make it with its folder; text is written as UTF-8.

    Args:
        path: the file.
        data: what it shall hold.
        is_synced: whether to wait until it is on the disk, some milliseconds; False for thousands of small files of a
            cache, which a power failure may lose.

    Raises:
        OSError: naming the file and what to do; what was there before is unchanged.
    """
    with whole_file(path, is_synced=is_synced) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def whole_file(path: str | Path, *, is_synced: bool = True) -> Iterator[IO[bytes]]:
    """A file to write into, which replaces `path` at the end of the block unless the block raises.

    Raises:
        OSError: as `write_whole`.
    """
    with whole_files(path, is_synced=is_synced) as [file]:
        yield file


@contextlib.contextmanager
def whole_files(*paths: str | Path, is_synced: bool = True) -> Iterator[list[IO[bytes]]]:
    """Files that belong together: none is replaced before all are written.

    Raises:
        OSError: as `write_whole`.
    """
    targets = [Path(path).resolve() for path in paths]  # a link stays one, what it points to is replaced
    try:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(nameless_file(target.parent)) for target in targets]
            yield files
            give_names(dict(zip(targets, files, strict=True)), is_synced=is_synced)
    except OSError as error:
        raise _explained(error, targets) from error


@contextlib.contextmanager
def nameless_file(folder: Path) -> Iterator[IO[bytes]]:
    """A file in a folder, made if need be, that is removed at the end of the block unless `give_names` has named it."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{uuid.uuid4().hex}{SUFFIX}"
    try:
        with temporary.open("xb") as file:
            yield file
    finally:
        temporary.unlink(missing_ok=True)


def give_names(files: dict[Path, IO[bytes]], *, is_synced: bool = True) -> None:
    """Give nameless files their names, when all are written; they cannot be written to afterwards."""
    for file in files.values():
        file.flush()
        if is_synced:
            os.fsync(file.fileno())  # a name must not outlive a power failure that its content does not
    for path, file in files.items():
        os.replace(file.name, path)
    for folder in {path.parent for path in files} if is_synced else ():
        _sync(folder)


@contextlib.contextmanager
def whole_entries(folder: str | Path) -> Iterator[Path]:
    """A folder to write into, whose files and folders replace those of their names in `folder` unless the block raises.

    None is replaced before all are on the disk; what `folder` holds beside them stays.

    Raises:
        OSError: as `write_whole`, where writing fails; an error of what the block reads is passed on as it is.
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
        with contextlib.suppress(OSError):  # where the former entries could not be put back they stay here
            former.rmdir()
        with contextlib.suppress(OSError):
            scratch.rmdir()


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A folder beside `path` to write into, which takes its place at the end of the block unless the block raises.

    It is protected against a kill, not against a power failure: its files are not synced one by one.

    Raises:
        OutputInUseError: if another run writes to it.
        OSError: where the disk is full, as `write_whole`.
    """
    path = Path(path).resolve()
    new, former = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.former")
    with hold_output(path, is_folder=False):
        if former.exists() and not path.exists():  # a kill came between the two renamings
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
    """Give a folder that is whole the name `path`; what has that name steps aside to `former` first."""
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
    """Move each entry of `new` into `target`, and what it replaces into `former`; all of them or none."""
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
    """Let a file's content, or a folder's names, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explained(error: OSError, targets: list[Path]) -> OSError:
    """The error with the files' names and a way out; an `OSError` of the same kind."""
    names = " and ".join(str(target) for target in targets)
    text = f"{names} cannot be written ({error.strerror or error}); what was there before is unchanged: "
    if error.errno in FULL:
        text += "free space there, or name another place, and run again"
    else:
        text += "check that the folder may be written to, or name another place, and run again"
    return OSError(error.errno, text)
