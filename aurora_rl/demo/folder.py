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

    Entered before Gradio is imported, which reads some of its settings then. What is set in the environment for
    other pages, such as further folders to be served, does not count here.
    """
    with (
        tempfile.TemporaryDirectory(prefix="aurora-rl-serve-", ignore_cleanup_errors=True) as folder,
        _sigterm_as_sigint(),
    ):
        for name in [name for name in os.environ if name.startswith("GRADIO_")]:
            del os.environ[name]
        path = Path(folder).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(path)
        os.environ["GRADIO_EXAMPLES_CACHE"] = str(path / "examples")
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        yield path


@contextlib.contextmanager
def _sigterm_as_sigint() -> Iterator[None]:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
