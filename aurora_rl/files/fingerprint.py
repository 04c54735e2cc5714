"""Hashes that identify files by name or content, and plain values.

Caches, journals and records of finished stages hold them: if a hash here changes, all of these are invalid. The hash of
a checkpoint is made from them by `models.checkpoint_files`, which knows the files of a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from aurora_rl.files.plain import check_plain_file


def fingerprint_names(paths: Iterable[str]) -> str:
    """Hash files' names and sizes, in their order: distinguishes other or changed files without reading them."""
    return fingerprint_bytes("\n".join(f"{os.path.basename(path)} {os.path.getsize(path)}" for path in paths).encode())


def fingerprint_files(files: Iterable[tuple[str, os.stat_result]]) -> str:
    """Hash files' names, sizes and times of change, in any order; 16 digits."""
    facts = sorted((name, status.st_size, status.st_mtime_ns) for name, status in files)
    return fingerprint_bytes(repr(facts).encode())[:16]


def fingerprint_content(path: Path) -> str:
    """Hash the content of a file.

    Raises:
        NotPlainFileError: if it is a pipe or a device.
        FileNotFoundError: if there is no such file.
    """
    check_plain_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_values(values: object) -> str:
    """Hash texts, numbers and lists of them, by their JSON."""
    return fingerprint_bytes(json.dumps(values).encode())


def fingerprint_bytes(data: bytes) -> str:
    """Return the SHA-256 in 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
