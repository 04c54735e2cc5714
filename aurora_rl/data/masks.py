"""Masks that a benchmark keeps as run lengths in JSON, written once as PNG files.

`AVSample` holds paths, and everything behind it (`media.load_clip`, the embedding cache's checks, the workers of a data
loader) reads plain files. Written out, such masks take the path of every other benchmark's masks, and no worker parses
hundreds of megabytes of JSON to read one clip. A file's name is the hash of what is in it: a changed annotation makes
another file, equal masks share one, and no name in the JSON can lead out of the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aurora_rl.data.files import DatasetError

MAX_BITS = 30  # where a number of pixels ends at the latest; without a limit a long text would make one huge number


def write_mask(rles: Sequence[Mapping[str, Any]], size: tuple[int, int], folder: Path) -> str:
    """Write the union of one frame's masks, unless it is there already.

    Args:
        rles: masks of any number of objects as COCO run lengths, compressed (`counts` a string) or not (a list of
            numbers); none gives an empty mask.
        size: (height, width) of the frame.
        folder: where such files are kept.

    Returns:
        The file, a PNG of mode 1.

    Raises:
        DatasetError: if run lengths are malformed or of another size.
    """
    counts = [_run_lengths(rle, size) for rle in rles]
    # Sorted, so that the order in which a reference names its objects does not matter.
    content = json.dumps([list(size), sorted(counts)])
    digest = hashlib.sha256(content.encode()).hexdigest()[:32]
    path = folder / digest[:2] / f"{digest}.png"
    if not path.exists():
        _save(_union(counts, size), path)
    return str(path)


def _run_lengths(rle: Mapping[str, Any], size: tuple[int, int]) -> list[int]:
    """How many pixels are off, on, off ... in column order; checked to fill the frame.

    Not by pycocotools: its decoder takes run lengths that fill less and leaves the rest as it found the memory.
    """
    if not isinstance(rle, Mapping) or not isinstance(rle.get("counts"), (str, list)) or "size" not in rle:
        raise DatasetError(f"{str(rle)[:80]!r} is no mask: expected COCO run lengths with size and counts, or null")
    if rle["size"] != list(size):
        raise DatasetError(
            f"a mask has the size {rle['size']!r} (height, width), expected {list(size)} as its frame has"
        )
    counts = rle["counts"] if isinstance(rle["counts"], list) else _decompress(rle["counts"])
    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != size[0] * size[1]:
        raise DatasetError(f"a mask's run lengths do not add up to {size[0]} x {size[1]} pixels: annotate it anew")
    return counts


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
            raise DatasetError(f"a mask's run lengths hold {character!r}, where COCO's do not: annotate it anew")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value, shift = 0, 0
    return counts


def _union(counts: Sequence[Sequence[int]], size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool."""
    height, width = size
    union = np.zeros(size, dtype=bool)
    for runs in counts:
        is_on = np.arange(len(runs)) % 2 == 1
        union |= np.repeat(is_on, runs).reshape(width, height).T
    return union


def _save(mask: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: the launched processes write the same files at the same time.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        Image.fromarray(mask).save(temporary, format="PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
