"""Masks that a benchmark keeps as run lengths in JSON, written once as PNG files.

`AVSample` holds paths, and all its users (`media.load_clip`, the embedding cache's checks, the workers of a data
loader) read plain files. As files, such masks are read like those of every other benchmark, and no worker parses
hundreds of megabytes of JSON to read one clip. A file's name is the hash of its content: a changed annotation makes
another file, equal masks share one, and no name in the JSON can lead out of the folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aurora_rl.data import run_lengths
from aurora_rl.data.files import DatasetError
from aurora_rl.files.atomic import whole_file
from aurora_rl.files.fingerprint import fingerprint_bytes, fingerprint_values


def write_mask(rles: Sequence[Mapping[str, Any]], size: tuple[int, int], folder: Path) -> str:
    """Write the union of one frame's masks, unless it is there already.

    Args:
        rles: masks of any number of objects as COCO run lengths, compressed (`counts` a string) or not (a list of
            numbers); none gives an empty mask.
        size: (height, width) of the frame.
        folder: folder of such files.

    Returns:
        The file, a PNG of mode 1.

    Raises:
        DatasetError: if run lengths are malformed or of another size.
    """
    try:
        counts = [run_lengths.read(rle, size) for rle in rles]
    except ValueError as error:
        raise DatasetError(f"{error}: annotate it again") from error
    # Sorted, so that the order in which a reference names its objects does not matter.
    digest = fingerprint_values([list(size), sorted(counts)])[:32]
    path = folder / digest[:2] / f"{digest}.png"
    if not path.exists():
        union = np.zeros(size, dtype=bool)
        for runs in counts:
            union |= run_lengths.to_mask(runs, size)
        _save(union, path)
    return str(path)


def write_mask_array(mask: np.ndarray, folder: Path) -> str:
    """Write a mask (H, W) bool, unless it is there already; returns the file, a PNG of mode 1."""
    digest = fingerprint_bytes(repr(mask.shape).encode() + np.packbits(mask).tobytes())[:32]
    path = folder / digest[:2] / f"{digest}.png"
    if not path.exists():
        _save(mask, path)
    return str(path)


def _save(mask: np.ndarray, path: Path) -> None:
    # Whole or not at all: the launched processes write the same files at the same time.
    with whole_file(path, is_synced=False) as file:
        Image.fromarray(mask).save(file, format="PNG")
