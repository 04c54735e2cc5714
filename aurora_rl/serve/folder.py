"""The temporary folder that a page lives in, gone when the page is."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """Make the folder, tell Gradio of it, and remove it at the end, which SIGTERM brings about as Ctrl-C does.

    Entered before Gradio is imported, which reads some of its settings then.
    """
    with (
        tempfile.TemporaryDirectory(prefix="aurora-rl-serve-", ignore_cleanup_errors=True) as folder,
        _gradio_settings(Path(folder).resolve()),
        _sigterm_as_sigint(),
    ):
        yield Path(folder).resolve()


@contextlib.contextmanager
def _gradio_settings(folder: Path) -> Iterator[None]:
    """In the environment; what is set there for other pages, such as further folders to be served, does not count."""
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("GRADIO_")}
    ours = {
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_EXAMPLES_CACHE": str(folder / "examples"),
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextlib.contextmanager
def _sigterm_as_sigint() -> Iterator[None]:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
