"""How much memory a mask decoder may take for the masks that it works on at once."""

from __future__ import annotations

import psutil
import torch

#: Of a GPU, and of a host, whose other processes read the same numbers: a share of all memory, and of what is free.
#: The first decides as a rule, so that a run goes through the same chunks whenever it is begun; the second where little
#: is left.
GPU_SHARES, HOST_SHARES = (1 / 16, 1 / 2), (1 / 32, 1 / 8)


def decoding_budget(device: torch.device) -> float:
    """Bytes that the activations of one chunk of masks may take on a device."""
    of_all, of_free = GPU_SHARES if device.type == "cuda" else HOST_SHARES
    total, free = device_memory(device)
    return min(of_all * total, of_free * free)


def device_memory(device: torch.device) -> tuple[int, int]:
    """Bytes of a device's memory, and those that are free now, what PyTorch holds in reserve included."""
    if device.type != "cuda":
        host = psutil.virtual_memory()
        return host.total, host.available
    free, total = torch.cuda.mem_get_info(device)
    return total, free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def power_of_two_below(value: float) -> int:
    """The largest power of two that is not above `value`, at least 1: 5.7 -> 4, 0.3 -> 1."""
    return 1 << max(0, int(value).bit_length() - 1)
