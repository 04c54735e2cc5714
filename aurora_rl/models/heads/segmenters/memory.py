"""The memory that a mask decoder may take for the masks of one chunk."""

from __future__ import annotations

import psutil
import torch

#: Largest shares of all memory and of free memory. A host's are smaller, since its other processes see the same
#: numbers. Usually the first share decides, so that each run has the same chunks; the second where little is free.
GPU_SHARES, HOST_SHARES = (1 / 16, 1 / 2), (1 / 32, 1 / 8)


def decoding_budget(device: torch.device) -> float:
    """Return how many bytes the activations of one chunk of masks may take on a device."""
    of_all, of_free = GPU_SHARES if device.type == "cuda" else HOST_SHARES
    total, free = device_memory(device)
    return min(of_all * total, of_free * free)


def device_memory(device: torch.device) -> tuple[int, int]:
    """Return the bytes of a device's memory and its free bytes, which include PyTorch's reserve."""
    if device.type != "cuda":
        host = psutil.virtual_memory()
        return host.total, host.available
    free, total = torch.cuda.mem_get_info(device)
    return total, free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def power_of_two_below(value: float) -> int:
    """Return the largest power of two that is not above `value`, at least 1: 5.7 -> 4, 0.3 -> 1."""
    return 1 << max(0, int(value).bit_length() - 1)
