"""COCO's run lengths read back into masks: `{"size": [height, width], "counts": ...}`, compressed or not.

Not by pycocotools, whose decoder trusts what it is given: it takes a size of any number of gigabytes, and run lengths
that fill less than their size, where it leaves the rest as it found the memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MAX_BITS = 30  # where a number of pixels ends at the latest; without a limit a long text would make one huge number


def size_of(rle: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) in pixels that a mask claims to have.

    Raises:
        ValueError: if there is no such thing in it.
    """
    size = rle.get("size") if isinstance(rle, Mapping) else None
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise ValueError(f"a mask has the size {size!r}: expected [height, width] in pixels")
    return size[0], size[1]


def decode(rle: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) bool of some run lengths, which must be of this size; raises as `read`."""
    return to_mask(read(rle, size), size)


def read(rle: Mapping[str, Any], size: tuple[int, int]) -> list[int]:
    """How many pixels are off, on, off ... in column order.

    Args:
        rle: run lengths, `counts` a string (compressed) or a list of numbers.
        size: (height, width) that they must have, and fill.

    Raises:
        ValueError: if they are no run lengths, or of another size.
    """
    if not isinstance(rle, Mapping) or not isinstance(rle.get("counts"), str | list) or "size" not in rle:
        raise ValueError(f"{str(rle)[:80]!r} is no mask: expected COCO run lengths with size and counts")
    if rle["size"] != list(size):
        raise ValueError(f"a mask has the size {rle['size']!r} (height, width), expected {list(size)} as its frame has")
    counts = rle["counts"] if isinstance(rle["counts"], list) else _decompress(rle["counts"])
    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != size[0] * size[1]:
        raise ValueError(f"a mask's run lengths do not add up to {size[0]} x {size[1]} pixels")
    return counts


def to_mask(counts: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool of run lengths that `read` has checked."""
    height, width = size
    is_on = np.arange(len(counts)) % 2 == 1
    return np.repeat(is_on, counts).reshape(width, height).T


def _decompress(text: str) -> list[int]:
    """COCO's compressed run lengths (`rleFrString` of its C API): "0h0" -> [0, 24].

    Each character holds 5 bits of a number, lowest first, and in bit 6 whether more follow; from the fourth number on,
    the difference from the number before the last is written.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > MAX_BITS:
            raise ValueError(f"a mask's run lengths hold {character!r}, where COCO's do not")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value, shift = 0, 0
    return counts
