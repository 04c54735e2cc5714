"""Which kernel attends over a packed row, by what is known before it runs."""

from __future__ import annotations

import torch

from aurora_rl.models.packed_layout import PackedLayout

#: Copies of a prompt's keys and values, of all branches of a layer, above which `merged` makes none. At 2,400 tokens,
#: 4 heads of 128 and 8 branches in bf16 they take 39 MB. By arithmetic: no GPU has measured where `merged` pays.
MOST_COPIED_BYTES = 2**28
#: What PyTorch's flash attention takes: GPUs since Ampere, half precision, heads of a multiple of 8. Its backward pass
#: of heads wider than 192 is not for all of these GPUs.
LEAST_CAPABILITY, DTYPES, WIDEST_HEAD = (8, 0), (torch.float16, torch.bfloat16), 192


def kernel_for(key: torch.Tensor, layout: PackedLayout, dropout: float) -> str:
    """Name the kernel of a row with these keys, (1, Hkv, N, d)."""
    return choose_kernel(
        capability=capability_of(key.device),
        dtype=key.dtype,
        head_dim=key.size(-1),
        dropout=dropout,
        copied_bytes=copied_bytes(key, layout),
    )


def choose_kernel(
    *, capability: tuple[int, int] | None, dtype: torch.dtype, head_dim: int, dropout: float, copied_bytes: int
) -> str:
    """Name the kernel of a row.

    Args:
        capability: the NVIDIA GPU's compute capability; None on any other device.
        dtype: dtype of queries, keys and values.
        head_dim: d, width of a head.
        dropout: probability that an attention weight is dropped.
        copied_bytes: bytes of the keys and values that `sdpa` and `varlen` copy for the branches of a group.
    """
    has_flash = capability is not None and capability >= LEAST_CAPABILITY and dtype in DTYPES
    if not has_flash or dropout or head_dim % 8 or head_dim > WIDEST_HEAD:
        return "sdpa"
    return "merged" if copied_bytes > MOST_COPIED_BYTES else "varlen"


def capability_of(device: torch.device) -> tuple[int, int] | None:
    """Return the compute capability of an NVIDIA GPU; None of any other device."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    return torch.cuda.get_device_capability(device)


def copied_bytes(key: torch.Tensor, layout: PackedLayout) -> int:
    """Return the bytes of the branches' copies of their prompt's keys and values, in the largest group.

    The largest alone: scoring and training may put different numbers of groups in a row, and must not differ by the
    rounding of two kernels.
    """
    of_token = 2 * key.size(1) * key.size(-1) * key.element_size()
    return of_token * max(group.shared * len(group.lengths) for group in layout.groups)
