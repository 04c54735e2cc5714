"""What an upload leaves on the disk: nothing where it fails or is broken off, and not more than there is room for."""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Iterator
from pathlib import Path

import gradio.route_utils

#: Bytes that each file counts for at least: many small ones fill a disk, too, and take long to be listed.
SMALLEST_FILE = 65_536

_begun: contextvars.ContextVar[list[Path]] = contextvars.ContextVar("_begun")


class _NotingParser(gradio.route_utils.GradioMultiPartParser):
    """Gradio's parser, which notes the files that it begins to write.

    Gradio's own removes them where a body is malformed, but not where it ends too early, its sender is gone, or a part
    is no file of the page.
    """

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        if self._current_part.file is not None:
            _begun.get([]).append(Path(str(self._current_part.file.file.name)))


def tell_begun_files() -> None:
    """Have Gradio read uploads by a parser that `leaving_no_half_files` hears from; called once a page."""
    gradio.route_utils.GradioMultiPartParser = _NotingParser


@contextlib.contextmanager
def leaving_no_half_files() -> Iterator[None]:
    """Remove what an upload in here has begun to write and not handed on: a whole file has another name by then."""
    files: list[Path] = []
    token = _begun.set(files)
    try:
        yield
    finally:
        _begun.reset(token)
        for file in files:
            file.unlink(missing_ok=True)


def stored_bytes(folder: Path) -> int:
    """What the files under a folder take, small ones as `SMALLEST_FILE`."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # removed meanwhile
                total += max(os.lstat(os.path.join(parent, name)).st_size, SMALLEST_FILE)
    return total
