"""The memory that a process may take of its device and of the machine."""

from __future__ import annotations

import dataclasses
import os
from typing import Self

import torch

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.footprint.launch import Launch


@dataclasses.dataclass(frozen=True)
class Limits:
    """Upper limits of a process's memory, in bytes; None if unknown.

    Attributes:
        device: limit of its GPU's memory, or of its share of the machine's memory if the CPU is the device.
        host: limit of its share of the machine's memory beside a GPU.
    """

    device: int | None = None
    host: int | None = None

    @classmethod
    def of(cls, args: ModelArguments, launch: Launch, *, device_memory: int | None, host_memory: int | None) -> Self:
        """Take the limits from the arguments, and from the existing memory if the arguments give none.

        Args:
            args: arguments with `memory_limit_gb`.
            launch: how the run is spread, as processes of one machine share its memory.
            device_memory: memory of one GPU, in bytes.
            host_memory: memory of one machine, in bytes.
        """
        share = None if host_memory is None else host_memory // launch.local_processes
        device = device_memory if launch.is_gpu else share
        if args.memory_limit_gb is not None:
            device = round(args.memory_limit_gb * 1e9)
        return cls(device, share if launch.is_gpu else None)


def device_memory(device: torch.device) -> int:
    """Return the memory of a device in bytes, without regard to limits."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return host_memory()


def host_memory() -> int:
    """Return this machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
