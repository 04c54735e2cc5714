"""Hashes by which a file or a run is known again: of what files are called and hold, and of values.

They are written into caches, journals and records of stages, so that a change here makes all of these start anew.
A checkpoint's is put together from them in `models.checkpoint_files`, which knows what belongs to one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable


def fingerprint_files(files: Iterable[tuple[str, os.stat_result]]) -> str:
    """16 hexadecimal digits of files' names, sizes and times of change, in any order."""
    facts = sorted((name, status.st_size, status.st_mtime_ns) for name, status in files)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
