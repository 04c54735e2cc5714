"""Locks of outputs, so that one run at a time writes into each; the system releases the lock of any ended process.

The lock is a file beside the output, or inside an output folder; it is locked by `flock` and names its holder. The file
that a killed process has left is not locked, so it stops no other run. Forked processes do not hold the lock; in a
launched run the main process holds it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

#: Errors of file systems without locks.
UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
FOLDER_LOCK = "_run.lock"  # transformers does not push names with this beginning to a hub
#: A holder writes its name right after it has taken the lock; a reader in between retries.
LOOKS, SECONDS_BETWEEN_LOOKS = 20, 0.05

_held: dict[Path, int] = {}  # descriptors by lock file, so that a run may take its own lock a second time
_forks_are_watched = False


class OutputInUseError(ValueError):
    """Another run writes to the output; the message names it."""


@contextlib.contextmanager
def hold_output(output: str | Path, *, is_folder: bool, is_main_process: bool = True) -> Iterator[None]:
    """Keep other runs from writing to an output while the block runs; a run may hold its own output twice.

    Args:
        output: file or folder that the run writes. The folder of the lock is made: the output itself, or the file's.
        is_folder: whether the output is a folder; it need not exist yet.
        is_main_process: whether this process holds the lock for the launched run; others pass.

    Raises:
        OutputInUseError: if another run holds it.
    """
    lock = lock_of(output, is_folder=is_folder).resolve()
    if not is_main_process or lock in _held:
        yield
        return
    with hold(lock, output=output):
        yield


def lock_of(output: str | Path, *, is_folder: bool) -> Path:
    """Return the lock file of an output: beside a file, in a folder."""
    output = Path(output)
    return output / FOLDER_LOCK if is_folder else output.with_name(f".{output.name}.lock")


def check_free(output: str | Path, *, is_folder: bool) -> None:
    """Check that no other run holds an output, without taking it; arguments and error are those of `hold_output`."""
    lock = lock_of(output, is_folder=is_folder)
    if not lock.is_file() or lock.resolve() in _held:
        return
    descriptor = _open_locked(lock.resolve(), output)
    if descriptor is not None:
        os.close(descriptor)  # releases the lock; a killed run left the file


@contextlib.contextmanager
def hold(lock: Path, *, output: str | Path) -> Iterator[int | None]:
    """Hold a lock file and yield its descriptor; a child process that inherits the descriptor holds the lock as well.

    Args:
        lock: path of the file, which is made with its folder, and removed at the end.
        output: the locked output, for the message.

    Raises:
        OutputInUseError: if it is held already.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock = lock.resolve()
    descriptor = _open_locked(lock, output)
    if descriptor is None:
        yield None
        return
    _watch_forks()
    _held[lock] = descriptor
    try:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield descriptor
    finally:
        if _held.pop(lock, None) is not None:  # a forked child holds nothing; the file is its parent's
            lock.unlink(missing_ok=True)
            os.close(descriptor)


def _open_locked(lock: Path, output: str | Path) -> int | None:
    """Open and lock the file that has this name now; None if the file system has no locks."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_holder(descriptor)
            os.close(descriptor)
            raise OutputInUseError(
                f"another run writes to {output}: {holder}. Wait for it, end it, or name another output"
            ) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno not in UNSUPPORTED:
                raise
            logger.warning("%s: the file system knows no locks (%s): take care that no other run writes", output, error)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
        os.close(descriptor)  # a run that ended between the two calls has removed it


def _read_holder(descriptor: int) -> str:
    for _ in range(LOOKS):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            holder = json.loads(os.pread(descriptor, 4096, 0))
            return f"process {holder['pid']} on {holder['host']}, started {holder['started']}"
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return "a process that has not said its name"


def _watch_forks() -> None:
    global _forks_are_watched
    if not _forks_are_watched:
        os.register_at_fork(after_in_child=_forget)
        _forks_are_watched = True


def _forget() -> None:
    """Close a forked child's copies of the descriptors, which would keep a dead parent's locks."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()
