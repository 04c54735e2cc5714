"""The folder of caches that need no option: what is in it can be made again at any time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Return `aurora_rl/<name>` under `AURORA_RL_CACHE`, else `XDG_CACHE_HOME`, else ~/.cache; nothing is made."""
    parent = os.environ.get("AURORA_RL_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(parent).expanduser() / "aurora_rl" / name
