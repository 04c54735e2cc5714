"""Decode COCO's run lengths into masks: `{"size": [height, width], "counts": ...}`, compressed or not.

The decoder of pycocotools is not used, because it trusts its input: it accepts a size of any number of gigabytes, and
run lengths that fill less than their size, where it returns uninitialised memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from pycocotools import mask as coco_mask

MAX_BITS = 30  # limit of a number of pixels; without a limit a long text would become one huge number
#: Limit for all frames of a clip together; 30 frames of 1920 x 1080 are half of it.
MAX_MASK_PIXELS = 2**27


class MaskRle(TypedDict):
    """One frame's mask as COCO's compressed run lengths: `size` is (height, width), `counts` ASCII."""

    size: list[int]
    counts: str


def size_of(rle: Mapping[str, Any]) -> tuple[int, int]:
    """Return (height, width) in pixels that a mask claims to have.

    Raises:
        ValueError: if it has no valid size.
    """
    size = rle.get("size") if isinstance(rle, Mapping) else None
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise ValueError(f"a mask has the size {size!r}: expected [height, width] in pixels")
    return size[0], size[1]


def decode(rle: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Decode run lengths of this size into a mask (H, W) bool; raises the errors of `read`."""
    return to_mask(read(rle, size), size)


def read(rle: Mapping[str, Any], size: tuple[int, int]) -> list[int]:
    """Read the numbers of pixels that are off, on, off ... in column order.

    Args:
        rle: run lengths, `counts` a string (compressed) or a list of numbers.
        size: (height, width) that the run lengths must have and fill.

    Raises:
        ValueError: if `rle` holds no run lengths, or has another size.
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
    """Build the mask (H, W) bool of run lengths that `read` has checked."""
    height, width = size
    is_on = np.arange(len(counts)) % 2 == 1
    return np.repeat(is_on, counts).reshape(width, height).T


def _decompress(text: str) -> list[int]:
    """Decompress COCO's run lengths (`rleFrString` of its C API): "0h0" -> [0, 24].

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


def encode_masks(masks: np.ndarray) -> tuple[MaskRle, ...]:
    """Encode masks as COCO run lengths, one a frame.

    Args:
        masks: (F, H, W) bool.
    """
    if masks.ndim != 3 or masks.dtype != np.bool_:
        raise ValueError(f"masks are {masks.dtype} of shape {masks.shape}: expected bool (F, H, W)")
    rles = [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    # The counts are bytes in this version of pycocotools, text in others.
    texts = [rle["counts"] if isinstance(rle["counts"], str) else rle["counts"].decode("ascii") for rle in rles]
    return tuple(MaskRle(size=list(rle["size"]), counts=text) for rle, text in zip(rles, texts, strict=True))


def decode_masks(rles: Sequence[MaskRle]) -> np.ndarray:
    """Decode the masks (F, H, W) bool that `encode_masks` has encoded.

    Raises:
        ValueError: if there are no masks, they differ in size, are too large, or do not fill their size.
    """
    if not rles:
        raise ValueError("there are no masks: expected one a frame")
    height, width = size = size_of(rles[0])
    if len(rles) * height * width > MAX_MASK_PIXELS:
        raise ValueError(f"{len(rles)} masks of {height} x {width} pixels are more than {MAX_MASK_PIXELS} together")
    return np.stack([decode(rle, size) for rle in rles])
