"""Safe reading of DeepSpeed's part of a checkpoint: weights and plain numbers, nothing else.

DeepSpeed unpickles its files, and a pickled file can run code. Here `torch.load` admits tensors, containers and the few
classes of plain values that DeepSpeed itself writes; a file with anything else is refused before any of it is run.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers.trainer

from aurora_rl.models.checkpoint_files import trained_weights_are_loaded

#: What DeepSpeed writes beside tensors, under ZeRO-1 to 3 in float32, float16 and bfloat16: values without behaviour.
PLAIN_CLASSES = (
    "deepspeed.runtime.fp16.loss_scaler:LossScaler",
    "deepspeed.runtime.fp16.loss_scaler:DynamicLossScaler",
    "deepspeed.runtime.zero.config:ZeroStageEnum",
    "deepspeed.utils.tensor_fragment:fragment_address",
)


class UnsafeCheckpointError(ValueError):
    """A file of a checkpoint that could run code when it is opened."""


@contextlib.contextmanager
def deepspeed_loads_weights_alone() -> Iterator[None]:
    """Let DeepSpeed load checkpoints without unpickling while the block runs, to resume or to load the best one."""
    load_checkpoint = transformers.trainer.deepspeed_load_checkpoint

    def load_weights_alone(engine: Any, checkpoint: str, *args: Any, **kwargs: Any) -> None:
        # A trained weight that the checkpoint lacks, or holds in another shape, is a CheckpointError.
        with weights_alone(), trained_weights_are_loaded(checkpoint, engine.module):
            load_checkpoint(engine, checkpoint, *args, **kwargs)

    with _replaced(transformers.trainer, "deepspeed_load_checkpoint", load_weights_alone):
        yield


@contextlib.contextmanager
def weights_alone() -> Iterator[None]:
    """Let `torch.load` unpickle nothing but tensors, containers and `PLAIN_CLASSES` while the block runs.

    Raises:
        UnsafeCheckpointError: if `torch.load` reads a file with anything else; the error names the file.
    """
    load = torch.load

    def load_weights(file: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return load(file, *args, **{**kwargs, "weights_only": True})
        except pickle.UnpicklingError as error:
            name = file if isinstance(file, str | os.PathLike) else "a file of the checkpoint"
            raise UnsafeCheckpointError(
                f"{name} is damaged, or holds more than weights, which could run code when it is opened ({error}): "
                "resume from a checkpoint that you know, or start from the beginning"
            ) from None

    plain = torch.serialization.safe_globals([pkgutil.resolve_name(name) for name in PLAIN_CLASSES])
    with plain, _replaced(torch, "load", load_weights):
        yield


def refuse_pickled_index(checkpoint: Path) -> None:
    """Refuse to resume from a sharded checkpoint of FSDP, whose index PyTorch would unpickle.

    Raises:
        UnsafeCheckpointError: if there is such an index; the error names it.
    """
    for index in checkpoint.glob("**/.metadata"):
        raise UnsafeCheckpointError(
            f"{index} is a pickled index, which could run code when it is opened: train with fsdp_state_dict_type "
            "FULL_STATE_DICT, whose checkpoints hold weights alone"
        )


@contextlib.contextmanager
def _replaced(module: ModuleType, name: str, value: Callable[..., Any]) -> Iterator[None]:
    """While the block runs, a module's function is another one, in every thread."""
    former = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, former)
