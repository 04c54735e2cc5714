"""Environment variables that a YAML file may set by its key `env`.

Configs are shared, so a config must not decide which code is loaded, where requests and keys are sent, or what a secret
is. Only names that are known to tune a library are allowed; if there is another one, no variable is set.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

#: Names that only tune libraries.
ALLOWED = (
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_DEVICE_ORDER",
    "CUDA_VISIBLE_DEVICES",
    "HF_DATASETS_OFFLINE",
    "HF_HUB_OFFLINE",
    "MKL_NUM_THREADS",
    "NCCL_DEBUG",
    "NCCL_IB_DISABLE",
    "NCCL_P2P_DISABLE",
    "NCCL_SOCKET_IFNAME",
    "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TOKENIZERS_PARALLELISM",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    "TRANSFORMERS_OFFLINE",
    "TRANSFORMERS_VERBOSITY",
    "WANDB_MODE",
    "WANDB_NAME",
    "WANDB_PROJECT",
    "WANDB_RUN_GROUP",
    "WANDB_TAGS",
)


def set_environment(env: Any, *, config: str) -> None:
    """Set and log the variables of a config's `env`: all of them, or none if one is refused.

    Args:
        env: value of the key `env`.
        config: path of the file, for messages.

    Raises:
        ValueError: as `check_environment`.
    """
    check_environment(env, config=config)
    for name, value in env.items():
        os.environ[name] = str(value)
        logger.warning("%s sets %s=%s", config, name, value)


def check_environment(env: Any, *, config: str) -> None:
    """Check a config's `env` and set nothing.

    Args:
        env: value of the key `env`.
        config: path of the file, for messages.

    Raises:
        ValueError: if it is no mapping, or names a variable that a config may not set.
    """
    if not isinstance(env, Mapping):
        raise ValueError(f"{config}: env is {env!r}: expected names of variables with their values")
    refused = [str(name) for name in env if name not in ALLOWED]
    if refused:
        raise ValueError(
            f"{config}: env sets {', '.join(refused)}, which a config may not: it could decide which code is loaded or "
            f"where data and keys go. Set it in the shell, or leave it out; allowed are {', '.join(ALLOWED)}"
        )
