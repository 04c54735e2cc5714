"""Disk space of uploads: incomplete uploads are removed, and the stored files are measured."""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Iterator
from pathlib import Path

import gradio.route_utils

#: Bytes that every file counts at least: many small files also fill a disk, and take long to list.
SMALLEST_FILE = 65_536

_begun: contextvars.ContextVar[list[Path]] = contextvars.ContextVar("_begun")


class _RecordingParser(gradio.route_utils.GradioMultiPartParser):
    """Gradio's parser, which also records the files that it begins to write.

    Gradio removes them if a body is malformed, but not if it ends too early, its sender is gone, or a part is not a
    file of the page.
    """

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        if self._current_part.file is not None:
            _begun.get([]).append(Path(str(self._current_part.file.file.name)))


def tell_begun_files() -> None:
    """Let Gradio use the parser that records files for `leaving_no_half_files`; call this once a page."""
    gradio.route_utils.GradioMultiPartParser = _RecordingParser


@contextlib.contextmanager
def leaving_no_half_files() -> Iterator[None]:
    """Remove the incomplete files of an upload in this block; complete ones have been renamed by then."""
    files: list[Path] = []
    token = _begun.set(files)
    try:
        yield
    finally:
        _begun.reset(token)
        for file in files:
            file.unlink(missing_ok=True)


def stored_bytes(folder: Path) -> int:
    """Return the bytes of all files under a folder; each counts at least `SMALLEST_FILE`."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # removed meanwhile
                total += max(os.lstat(os.path.join(parent, name)).st_size, SMALLEST_FILE)
    return total
