"""One run at a time into one output: a lock that the system takes away from a process that ends, however it ends.

A file beside the output, or in it where that is a folder, is locked by `flock` and says who holds it. A file that a
killed process has left behind is not locked, and so is in nobody's way. Processes that are forked do not hold the lock;
of a launched run's processes the main one does.
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

#: What a file system says that knows no locks.
UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
FOLDER_LOCK = "_run.lock"  # what begins so, transformers does not push to a hub
#: A holder writes its name right after it has taken the lock; a reader in between looks again.
LOOKS, SECONDS_BETWEEN_LOOKS = 20, 0.05

_held: dict[Path, int] = {}  # descriptors by lock file, so that a run may take its own lock a second time
_forks_are_watched = False


class OutputInUseError(ValueError):
    """Another run writes to the output; the message says which."""


@contextlib.contextmanager
def hold_output(output: str | Path, *, is_folder: bool, is_main_process: bool = True) -> Iterator[None]:
    """Keep other runs from writing to an output as long as the block runs; a run may hold its own output twice.

    Args:
        output: what the run writes. The folder that the lock lies in, the output itself or the file's, is made.
        is_folder: whether it is a folder; it need not be there yet.
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
    """The lock file of an output: beside a file, in a folder."""
    output = Path(output)
    return output / FOLDER_LOCK if is_folder else output.with_name(f".{output.name}.lock")


def check_free(output: str | Path, *, is_folder: bool) -> None:
    """Check that no other run holds an output, without taking it; arguments and error are those of `hold_output`."""
    lock = lock_of(output, is_folder=is_folder)
    if not lock.is_file() or lock.resolve() in _held:
        return
    descriptor = _open_locked(lock.resolve(), output)
    if descriptor is not None:
        os.close(descriptor)  # and with it the lock; the file is that of a run that was killed


@contextlib.contextmanager
def hold(lock: Path, *, output: str | Path) -> Iterator[int | None]:
    """Hold a lock file; gives its descriptor, which a started process may be handed so that it holds the lock as well.

    Args:
        lock: the file, made with its folder, and removed at the end.
        output: what is locked, for the message.

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
        _write_holder(descriptor)
        yield descriptor
    finally:
        if _held.pop(lock, None) is not None:  # in a forked child nothing is held, and the file is its parent's
            lock.unlink(missing_ok=True)
            os.close(descriptor)


def _open_locked(lock: Path, output: str | Path) -> int | None:
    """A locked descriptor of the file that has this name now; None where the file system knows no locks."""
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
        os.close(descriptor)  # removed by a run that ended between the two calls


def _write_holder(descriptor: int) -> None:
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)


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
    """In a forked child: its copies of the descriptors would keep a dead parent's locks alive."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()
