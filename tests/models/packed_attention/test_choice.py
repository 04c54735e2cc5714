"""Which kernel is chosen, by device, dtype, size."""

from typing import Any

import pytest
import torch

from aurora_rl.models.packed_attention.choice import MOST_COPIED_BYTES, choose_kernel, copied_bytes, kernel_for
from aurora_rl.models.packed_layout import pack

HOPPER: dict[str, Any] = {
    "capability": (9, 0), "dtype": torch.bfloat16, "head_dim": 128, "dropout": 0.0, "copied_bytes": 39 * 10**6,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "varlen"),
        ({"dtype": torch.float16}, "varlen"),
        ({"capability": (8, 0)}, "varlen"),
        ({"capability": (12, 0)}, "varlen"),
        ({"copied_bytes": MOST_COPIED_BYTES}, "varlen"),
        ({"copied_bytes": MOST_COPIED_BYTES + 1}, "merged"),
        ({"capability": None}, "sdpa"),
        ({"capability": (7, 5)}, "sdpa"),
        ({"dtype": torch.float32}, "sdpa"),
        ({"dtype": torch.float32, "copied_bytes": MOST_COPIED_BYTES + 1}, "sdpa"),
        ({"dropout": 0.1}, "sdpa"),
        ({"head_dim": 100}, "sdpa"),
        ({"head_dim": 192}, "varlen"),
        ({"head_dim": 256}, "sdpa"),
    ],
)
def test_the_kernel_follows_from_what_is_known(change: dict[str, Any], expected: str) -> None:
    assert choose_kernel(**HOPPER | change) == expected


def test_copies_are_counted_in_the_largest_group() -> None:
    """Prompts of 4 + 1 and 2 + 1 tokens, two branches and three: 8 and 6 copied tokens, of 2 heads of 8, K and V."""
    ids = torch.tensor([[1, 1, 1, 1, 1, 9], [1, 1, 1, 1, 1, 9], *[[0, 0, 2, 2, 2, 9]] * 3])
    layout = pack(ids, (ids > 0).long(), 1, [0, 0, 1, 1, 1])
    key = torch.empty(1, 2, 1, 8, dtype=torch.bfloat16)
    assert copied_bytes(key, layout) == 8 * 2 * 8 * 2 * 2
    assert kernel_for(key, layout, 0.0) == "sdpa"  # here, on the CPU


def test_the_real_shape_copies_little() -> None:
    """Prompt 2,400, eight branches, 4 heads of 128, bf16: 39 MB."""
    ids = torch.ones(8, 2401, dtype=torch.long)
    key = torch.empty(1, 4, 1, 128, dtype=torch.bfloat16)
    assert copied_bytes(key, pack(ids, ids, 1, [0] * 8)) == 2 * 8 * 2399 * 4 * 128 * 2 == 39_305_216
