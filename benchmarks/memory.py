"""Peak memory of a span: of the GPU if there is one, else of this process."""

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
    """Peak memory of a span in GB (10^9 bytes), without what was in use at its start; set when the span ends."""

    gigabytes: float = 0.0


@contextlib.contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the peak memory of the block.

    On a CPU this is the peak of the resident set, after memory that earlier spans have freed is returned to the system.
    Linux can reset its high-water mark; elsewhere a span counts only as far as it rises above all earlier ones.
    """
    peak = Peak()
    gc.collect()
    if sys.platform == "linux":  # glibc keeps freed blocks; a span that reused them would seem to take nothing
        with contextlib.suppress(AttributeError, OSError):  # another libc
            ctypes.CDLL("libc.so.6").malloc_trim(0)
    start = reset_high_water_mark()
    yield peak
    peak.gigabytes = max(0.0, high_water_mark() - start) / 1e9


def reset_high_water_mark() -> float:
    """Reset the high-water mark, and return the bytes in use now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if not CLEAR_REFS.exists():
        return high_water_mark()
    CLEAR_REFS.write_text("5")
    return _status_bytes("VmRSS")


def high_water_mark() -> float:
    """Return the highest number of bytes in use since the mark was reset."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if STATUS.exists():
        return _status_bytes("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reserved_mark() -> float | None:
    """Return the most bytes that PyTorch has reserved on the GPU since the mark was reset; None without a GPU."""
    return float(torch.cuda.max_memory_reserved()) if torch.cuda.is_available() else None


def _status_bytes(name: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
