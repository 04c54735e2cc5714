"""Peak memory of a span: of the GPU where there is one, else of this process."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclasses.dataclass
class Peak:
    """What a span took at most above what was in use when it began, in GB (10^9 bytes); set when the span ends."""

    gigabytes: float = 0.0


@contextlib.contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure a span.

    On a CPU it is the resident set that is measured, after what earlier spans freed has been handed back. Linux can
    set its high-water mark back; elsewhere a span shows only as far as it rises above all earlier ones.
    """
    peak = Peak()
    gc.collect()
    _return_freed_memory()
    start = reset_high_water_mark()
    yield peak
    peak.gigabytes = max(0.0, high_water_mark() - start) / 1e9


def reset_high_water_mark() -> float:
    """Begin a new high-water mark; bytes in use now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if not CLEAR_REFS.exists():
        return high_water_mark()
    CLEAR_REFS.write_text("5")
    return _status_bytes("VmRSS")


def high_water_mark() -> float:
    """Most bytes in use since the mark was reset."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if STATUS.exists():
        return _status_bytes("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reserved_mark() -> float | None:
    """Most bytes that PyTorch's allocator took from the GPU since the mark was reset, None without one."""
    return float(torch.cuda.max_memory_reserved()) if torch.cuda.is_available() else None


def _status_bytes(name: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _return_freed_memory() -> None:
    """Glibc keeps freed blocks; a span that reused them would seem to take nothing."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another libc
            ctypes.CDLL("libc.so.6").malloc_trim(0)
