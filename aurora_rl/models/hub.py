"""Whether files can be had from the hub, found out once and within seconds.

huggingface_hub asks for each file five times, with longer and longer waits between: without a network a model whose
files are not here fails after minutes, and one whose files are in the cache loads after minutes.
"""

from __future__ import annotations

import functools
import logging
import threading
from pathlib import Path

from huggingface_hub import constants, get_session
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils._validators import validate_repo_id

logger = logging.getLogger(__name__)

#: Seconds that the hub has for an answer of any kind.
TIMEOUT_S = 10.0
#: Files of which each checkpoint has one.
CONFIGS = ("config.json", "adapter_config.json")


class HubError(OSError):
    """A checkpoint that is neither here nor in reach, or can be in neither place; the text says what to do."""


def check_hub(name: str) -> None:
    """Check that a name on the hub can be read: from the hub, or from the cache of what was read before.

    Where the hub cannot be reached, this process asks it for nothing more, and reads the cache alone.

    Raises:
        HubError: if no checkpoint on the hub can have the name, or if neither hub nor cache can give it.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise HubError(f"{name} is no folder here, and no name that the hub knows: check the path") from error
    problem = hub_problem()
    if problem is None:
        return
    snapshots = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"), "snapshots")
    if not any(any(snapshots.glob(f"*/{file}")) for file in CONFIGS):  # of any revision
        raise HubError(
            f"{name} is no folder here, is not in the cache {constants.HF_HUB_CACHE}, and {problem}: name a folder, or "
            f"fetch it where there is a network (`hf download {name}`) and copy that cache, or set HF_ENDPOINT to a "
            "mirror in reach"
        )


@functools.cache
def hub_problem() -> str | None:
    """Return why the hub cannot be asked, or None if it can; it is asked once, with `TIMEOUT_S` to answer."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE keeps it from being fetched"
    problem = _ask()
    if problem is not None:
        logger.warning("%s: only what is in the cache is read", problem)
        constants.HF_HUB_OFFLINE = True  # what the variable of that name would set, had it been known at the start
    return problem


def _ask() -> str | None:
    said: list[str] = [f"{constants.ENDPOINT} has not answered within {TIMEOUT_S:g} s"]

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=TIMEOUT_S)
            said.clear()
        except Exception as error:  # of the client, of a proxy, of certificates: whatever it is, nothing can be fetched
            said[:] = [f"{constants.ENDPOINT} cannot be reached ({error})"]

    # In a thread, because the search for the address of a name knows no timeout.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(TIMEOUT_S)
    return next(iter(said), None)
