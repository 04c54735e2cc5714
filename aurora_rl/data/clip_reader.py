"""Rows that ask about one clip in turn: its frames and its sound are decoded once.

Benchmarks list the references of a clip one after the other. What they share is remembered for one clip only, so that
memory stays that of a clip.
"""

from __future__ import annotations

import os

import numpy as np

from aurora_rl.data.media import load_clip, read_media
from aurora_rl.data.sample import AVClip, AVSample

#: Path, size in bytes and time of the last change of each file.
_Files = tuple[tuple[str, int, int], ...]


class ClipReader:
    """`media.load_clip` that remembers the frames and the sound of the last clip; masks belong to a row.

    Several threads may share one: what is remembered is replaced as a whole.
    """

    def __init__(self) -> None:
        self._last: tuple[_Files, tuple[np.ndarray, np.ndarray | None]] | None = None

    def __call__(self, sample: AVSample) -> AVClip:
        """As `media.load_clip`."""
        return load_clip(sample, read=self._read)

    def _read(self, sample: AVSample) -> tuple[np.ndarray, np.ndarray | None]:
        files, last = _files_of(sample), self._last
        if files is not None and last is not None and last[0] == files:
            return last[1]
        media = read_media(sample)
        self._last = None if files is None else (files, media)
        return media


def _files_of(sample: AVSample) -> _Files | None:
    """What tells a clip's files from others, and from what they were before a change; None if one is not there."""
    sound = [] if sample.audio_path is None else [sample.audio_path]
    try:
        states = [(str(path), os.stat(path)) for path in [*sample.frame_paths, *sound]]
    except (OSError, ValueError):  # what is wrong is said where the file is read
        return None
    # The number of frames stands first: sound is the last file, or there is none.
    return (("", len(sample.frame_paths), len(sound)), *((p, s.st_size, s.st_mtime_ns) for p, s in states))
