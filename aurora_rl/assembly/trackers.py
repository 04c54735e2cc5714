"""The trackers of `report_to`: which one a run has that names none, and whether the named ones are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

#: Libraries of the trackers that this package installs as extras; one of each is enough.
LIBRARIES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}


def default_tracker() -> str:
    """Return the tracker of a run that names none: trackio, whose page is on this machine, where it is installed."""
    return "trackio" if _is_installed("trackio") else "none"


def check_trackers(names: str | Sequence[str], *, name: str = "report_to") -> None:
    """Check that the libraries of trackers are installed.

    Args:
        names: one name or several; those of trackers that are no extra here pass.
        name: name of the option or key, for the error.

    Raises:
        ValueError: naming what to install.
    """
    for tracker in [names] if isinstance(names, str) else names:
        if tracker in LIBRARIES and not any(map(_is_installed, LIBRARIES[tracker])):
            raise ValueError(
                f"{name} is {tracker}, which is not installed: pip install 'aurora-rl[{tracker}]', or set it to none"
            )


def _is_installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None
