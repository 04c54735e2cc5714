"""Rows of one clip that follow each other share its frames and its sound, which are decoded once.

Benchmarks list the references of a clip one after the other. Only the last clip is kept, so that memory holds one clip.
"""

from __future__ import annotations

import os

import numpy as np

from aurora_rl.data.media import load_clip, read_media
from aurora_rl.data.sample import AVClip, AVSample

#: The path, size in bytes and time of the last change of each file.
_Files = tuple[tuple[str, int, int], ...]


class ClipReader:
    """Loads clips and keeps the frames and the sound of the last one; masks are read for each row.

    Several threads may share a reader, since the kept clip is replaced in one assignment.
    """

    def __init__(self) -> None:
        self._last: tuple[_Files, tuple[np.ndarray, np.ndarray | None]] | None = None

    def __call__(self, sample: AVSample) -> AVClip:
        """Load a sample's clip, see `media.load_clip`."""
        return load_clip(sample, read=self._read)

    def _read(self, sample: AVSample) -> tuple[np.ndarray, np.ndarray | None]:
        files, last = _files_of(sample), self._last
        if files is not None and last is not None and last[0] == files:
            return last[1]
        media = read_media(sample)
        self._last = None if files is None else (files, media)
        return media


def _files_of(sample: AVSample) -> _Files | None:
    """Identify a clip's files so that other or changed files are noticed; None if one is missing."""
    sound = [] if sample.audio_path is None else [sample.audio_path]
    try:
        states = [(str(path), os.stat(path)) for path in [*sample.media_files, *sound]]
    except (OSError, ValueError):  # the reading of the file raises the error
        return None
    # The times and the numbers of files come first, so that a sound is never mistaken for a frame.
    numbers = (repr(sample.frame_times), len(sample.media_files), len(sound))
    return (numbers, *((path, state.st_size, state.st_mtime_ns) for path, state in states))
