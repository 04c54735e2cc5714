"""Files that are replaced whole or not at all: results, tables, pages, reports and the folder of an answer.

A reader, and the next run, find the former file or the new one. Where the disk is full the former one stays.
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

#: No space on the disk, none left of a quota, a file above the allowed size.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_whole(path: str | Path, data: str | bytes) -> None:
    """Replace a file, or make it with its folder; text is written as UTF-8.

    Raises:
        OSError: naming the file and what to do; what was there before is unchanged.
    """
    with whole_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A file to write into, which replaces `path` at the end of the block unless the block raises.

    Raises:
        OSError: as `write_whole`.
    """
    with whole_files(path) as [file]:
        yield file


@contextlib.contextmanager
def whole_files(*paths: str | Path) -> Iterator[list[IO[bytes]]]:
    """Files that belong together: none is replaced before all are on the disk.

    Raises:
        OSError: as `write_whole`.
    """
    targets = [Path(path).resolve() for path in paths]  # a link stays one, what it points to is replaced
    temporaries = [target.with_name(f".{uuid.uuid4().hex}.tmp") for target in targets]
    try:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(_open(temporary)) for temporary in temporaries]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())  # a name must not outlive a power failure that its content does not
        for temporary, target in zip(temporaries, targets, strict=True):
            os.replace(temporary, target)
        for folder in {target.parent for target in targets}:
            _sync(folder)
    except OSError as error:
        raise _explained(error, targets) from error
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


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


def _open(temporary: Path) -> IO[bytes]:
    temporary.parent.mkdir(parents=True, exist_ok=True)
    return temporary.open("xb")


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
