"""The temporary folder of a page, removed when the page ends."""

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
    """Make the folder, set it in Gradio's settings, and remove it at the end; SIGTERM ends the block as Ctrl-C does.

    Enter the block before Gradio is imported, since Gradio reads some of its settings then.
    """
    with (
        tempfile.TemporaryDirectory(prefix="aurora-rl-serve-", ignore_cleanup_errors=True) as folder,
        _gradio_settings(Path(folder).resolve()),
        _sigterm_as_sigint(),
    ):
        yield Path(folder).resolve()


@contextlib.contextmanager
def _gradio_settings(folder: Path) -> Iterator[None]:
    """Set Gradio's environment variables, and unset all others of Gradio, such as further folders to serve."""
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
