"""Masks that a benchmark keeps as run lengths in JSON, written once as PNG files.

`AVSample` holds paths, and all its users (`media.load_clip`, the embedding cache's checks, the workers of a data
loader) read plain files. As files, such masks are read like those of every other benchmark, and no worker parses
hundreds of megabytes of JSON to read one clip. A file's name is the hash of its content: a changed annotation makes
another file, equal masks share one, and no name in the JSON can lead out of the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aurora_rl.data import run_lengths
from aurora_rl.data.files import DatasetError
from aurora_rl.files.atomic import whole_file, write_whole
from aurora_rl.files.fingerprint import fingerprint_bytes, fingerprint_values
from aurora_rl.files.plain import parse_json, read_text_file

#: Name of a mask file without its suffix.
_DIGEST = re.compile("[0-9a-f]{32}")


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
    path = _file_of(digest, folder)
    if not path.exists():
        union = np.zeros(size, dtype=bool)
        for runs in counts:
            union |= run_lengths.to_mask(runs, size)
        _save(union, path)
    return str(path)


def remembered(source: Path, asked: object, folder: Path, write: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
    """Return a clip's mask files as they were found when its source was read, which takes long for many clips.

    Args:
        source: file that holds the masks.
        asked: plain values that the choice of masks depends on beside the file.
        folder: folder of the mask files; a list of names lies beside them for each source and choice.
        write: function that reads the source and returns its files from `write_mask`, "" for a frame without a mask.
    """
    status = source.stat()
    identity = [os.path.realpath(source), status.st_size, status.st_mtime_ns, asked]
    listing = _file_of(fingerprint_values(identity)[:32], folder).with_suffix(".json")
    with contextlib.suppress(OSError, ValueError, TypeError):  # a damaged list is made again
        names = parse_json(read_text_file(listing))
        files = ["" if name == "" else _file_of(_DIGEST.fullmatch(name)[0], folder) for name in names]  # type: ignore[index]
        if all(file == "" or file.is_file() for file in files):  # type: ignore[union-attr]
            return tuple(map(str, files))
    masks = write()
    write_whole(listing, json.dumps([Path(mask).stem if mask else "" for mask in masks]), is_synced=False)
    return masks


def _file_of(digest: str, folder: Path) -> Path:
    return folder / digest[:2] / f"{digest}.png"


def write_mask_array(mask: np.ndarray, folder: Path) -> str:
    """Write a mask (H, W) bool, unless it is there already; returns the file, a PNG of mode 1."""
    digest = fingerprint_bytes(repr(mask.shape).encode() + np.packbits(mask).tobytes())[:32]
    path = _file_of(digest, folder)
    if not path.exists():
        _save(mask, path)
    return str(path)


def _save(mask: np.ndarray, path: Path) -> None:
    # Whole or not at all: the launched processes write the same files at the same time.
    with whole_file(path, is_synced=False) as file:
        Image.fromarray(mask).save(file, format="PNG")
