"""What an export for the hub needs, checked before the model is loaded; `hub_folder` writes it."""

from __future__ import annotations

import os
from pathlib import Path

#: Environment variable of the hub's token; the token file of a login is not read.
TOKEN_VARIABLE = "HF_TOKEN"


def check_token() -> str:
    """Return the hub's token from the environment.

    Raises:
        ValueError: if there is none.
    """
    token = os.environ.get(TOKEN_VARIABLE)
    if not token:
        raise ValueError(f"pushing needs a token with write access in the environment variable {TOKEN_VARIABLE}")
    return token


def check_is_new(folder: Path) -> None:
    """Refuse a folder that holds files; a ValueError names it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder: name a new one, as its files would be published too")
