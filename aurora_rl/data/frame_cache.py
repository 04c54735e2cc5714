"""Decoded frames of videos on disk, so that a video is not decoded again in every epoch.

A frame is a PNG file, which keeps every pixel. The folder of a clip's frames is named by a hash of the video's path,
size and time of change, and of the frames' times, so that a changed video is decoded again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from aurora_rl.data.containers import FilePath
from aurora_rl.files.atomic import whole_files
from aurora_rl.files.fingerprint import fingerprint_values

#: PNG's fastest compression; frames are read far more often than written, and reading costs the same for each.
COMPRESSION = 1


def frame_files(folder: FilePath, video: FilePath, times: Sequence[float]) -> list[Path]:
    """Return the F files of a video's frames in the cache, which need not exist.

    Raises:
        FileNotFoundError: if there is no such video.
    """
    status = os.stat(video)
    identity = [os.path.realpath(video), status.st_size, status.st_mtime_ns, list(times)]
    digest = fingerprint_values(identity)[:32]
    return [Path(folder) / digest[:2] / digest / f"{index}.png" for index in range(len(times))]


def keep_frames(files: Sequence[Path], decode: Callable[[], np.ndarray]) -> np.ndarray:
    """Decode frames (F, H, W, 3) uint8 and write them, all or none.

    Args:
        files: F files from `frame_files`.
        decode: function that returns the frames.
    """
    frames = decode()
    # Whole or not at all: the launched processes write the same files at the same time.
    with whole_files(*files, is_synced=False) as outs:
        for frame, out in zip(frames, outs, strict=True):
            Image.fromarray(frame).save(out, format="PNG", compress_level=COMPRESSION)
    return frames
