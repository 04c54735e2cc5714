"""Draw rows that represent a split which is too long to be read whole, for example to compare checkpoints in training.

A benchmark's table lists the references of a clip one after the other, so its first rows cover few clips: the first 64
of the 1,349 rows of Ref-AVSBench's val split cover 14 of its 275 clips, 64 drawn rows cover 64.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from aurora_rl.data.sample import AVSample


def evenly_spaced(length: int, count: int | None) -> list[int]:
    """Choose at most `count` of `length` indices, with the first and the last: 4 of 10 frames -> [0, 3, 6, 9]."""
    if count is None or count >= length:
        return list(range(length))
    return np.linspace(0, length - 1, count).round().astype(int).tolist()


def draw_over_clips(samples: Sequence[AVSample], count: int | None, *, seed: int = 0) -> list[AVSample]:
    """Draw rows so that they cover as many clips as there can be.

    No clip gives another row while some clip that has rows left has given fewer. The draw depends on the seed and on
    the rows' content, not on their order in the table, the process or the machine, and a larger draw contains a smaller
    one. Rows of one clip follow each other, so that a batch reads the clip once.

    Args:
        samples: rows of a split.
        count: number of rows to draw; None, or more than there are, gives all rows in the table's order.
        seed: seed of the draw.

    Raises:
        ValueError: if `count` is below 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"{count} rows are to be drawn: give 1 or more, or none at all (null) for the whole split")
    if count is None or count >= len(samples):
        return list(samples)
    by_clip: dict[str, list[AVSample]] = defaultdict(list)
    for sample in samples:
        by_clip[sample.media_id].append(sample)
    order = sorted(by_clip, key=lambda media_id: _lot(seed, media_id))
    # Rows with equal content and uid differ only by their place.
    clips = [sorted(by_clip[clip], key=lambda row: (_lot(seed, row.uid, row.reference), row.row)) for clip in order]
    turns = [(turn, clip, row) for clip, rows in enumerate(clips) for turn, row in enumerate(rows)]
    drawn = sorted(turns, key=lambda entry: entry[:2])[:count]
    return [row for _, _, row in sorted(drawn, key=lambda entry: (entry[1], entry[0]))]


def _lot(seed: int, *words: str) -> bytes:
    """Return a pseudo-random key of the words, the same on each machine and in each version of Python."""
    return hashlib.sha256("\0".join([str(seed), *words]).encode("utf-8", "surrogatepass")).digest()
