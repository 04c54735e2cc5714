"""Which rows stand for a split where it is too long to be read whole, as when checkpoints are compared in training.

A benchmark's table lists the references of one clip below each other. Its first rows are therefore few clips: the first
64 of the 1,349 rows of Ref-AVSBench's val split are 14 of its 275 clips, the draw's 64 are 64.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from aurora_rl.data.sample import AVSample


def draw_over_clips(samples: Sequence[AVSample], count: int | None, *, seed: int = 0) -> list[AVSample]:
    """Draw rows so that they cover as many clips as there can be.

    No clip gives a further row while another one has given fewer and has some left. What is drawn depends on the seed
    and on what the rows say, not on their order in the table, on the process or on the machine, and a larger draw
    contains a smaller one. Rows of one clip come one after the other, so that a batch of them reads the clip once.

    Args:
        samples: rows of a split.
        count: how many are drawn; all of them, in the table's order, where it is None or there are no more.
        seed: other seeds draw other rows.

    Raises:
        ValueError: if `count` is below 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"{count} rows are to be drawn: give 1 or more, or none at all (null) for the whole split")
    if count is None or count >= len(samples):
        return list(samples)
    clips = _rows_by_clip(samples, seed)
    turns = [(turn, clip, row) for clip, rows in enumerate(clips) for turn, row in enumerate(rows)]
    drawn = sorted(turns, key=lambda entry: entry[:2])[:count]
    return [row for _, _, row in sorted(drawn, key=lambda entry: (entry[1], entry[0]))]


def _rows_by_clip(samples: Sequence[AVSample], seed: int) -> list[list[AVSample]]:
    """The clips in a random order, each with its rows in a random order."""
    rows: dict[str, list[AVSample]] = defaultdict(list)
    for sample in samples:
        rows[sample.media_id].append(sample)
    clips = sorted(rows, key=lambda media_id: _lot(seed, media_id))
    # Rows that say the same under the same id differ by their place alone.
    return [sorted(rows[clip], key=lambda row: (_lot(seed, row.uid, row.reference), row.row)) for clip in clips]


def _lot(seed: int, *words: str) -> bytes:
    """A random number of so many words, the same on each machine and in each version of Python."""
    return hashlib.sha256("\0".join([str(seed), *words]).encode("utf-8", "surrogatepass")).digest()
