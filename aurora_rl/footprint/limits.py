"""How much memory a process may take of its device and of the machine."""

from __future__ import annotations

import dataclasses
import os
from typing import Self

import torch

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.footprint.launch import Launch


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bytes for each process, None where nobody knows.

    Attributes:
        device: of its GPU, or where the CPU is the device, of the machine's memory.
        host: of the machine's memory beside a GPU.
    """

    device: int | None = None
    host: int | None = None

    @classmethod
    def of(cls, args: ModelArguments, launch: Launch, *, device_memory: int | None, host_memory: int | None) -> Self:
        """As the arguments say, and what there is where they do not.

        Args:
            args: of which `memory_limit_gb` is read.
            launch: how many processes share a machine.
            device_memory: bytes of one GPU.
            host_memory: bytes of one machine.
        """
        share = None if host_memory is None else host_memory // launch.local_processes
        device = device_memory if launch.is_gpu else share
        if args.memory_limit_gb is not None:
            device = round(args.memory_limit_gb * 1e9)
        return cls(device, share if launch.is_gpu else None)


def device_memory(device: torch.device) -> int:
    """Bytes that a device really has, whatever a process may take of them."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return host_memory()


def host_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
