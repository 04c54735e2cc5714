"""Files that are replaced whole or not at all: results, tables, pages and reports.

A reader, and the next run, find the former file or the new one. Where the disk is full the former one stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
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
            _sync_folder(folder)
    except OSError as error:
        raise _explained(error, targets) from error
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def _open(temporary: Path) -> IO[bytes]:
    temporary.parent.mkdir(parents=True, exist_ok=True)
    return temporary.open("xb")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
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
