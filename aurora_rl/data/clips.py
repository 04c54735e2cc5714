"""Own clips as a list of samples, from a manifest: a JSONL, CSV or Parquet file with one row for each reference.

    {"id": "kitchen-1", "video": "clips/kitchen.mp4", "reference": "the kettle that whistles",
     "masks": "masks/kitchen-1.json", "category": "kettle", "split": "train"}

`manifest` reads the table, `manifest_rows` checks a row, `clip_files` finds its files. docs/own_data.md has all
columns.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from aurora_rl.data.chains import ChainFile, add_chains
from aurora_rl.data.clip_files import ClipBuilder, ClipPaths
from aurora_rl.data.containers import FilePath
from aurora_rl.data.files import DatasetError, OnMissing, collect_samples, rows_of_split
from aurora_rl.data.manifest import find_manifest, read_manifest
from aurora_rl.data.sample import AVSample

logger = logging.getLogger(__name__)


def load_clips(
    root: FilePath,
    split: str,
    *,
    fps: float = 1.0,
    num_frames: int | None = 10,
    columns: Mapping[str, str] | None = None,
    mask_cache: FilePath | None = None,
    frame_cache: FilePath | None = None,
    chains: ChainFile | None = None,
    on_missing: OnMissing = "error",
) -> list[AVSample]:
    """List the samples of one split of a manifest; rows without masks are among them.

    Args:
        root: the manifest, or a folder that holds one.
        split: name of the split; rows that name none are in "train".
        fps: frames a second that are sampled of a video, or that given frames have, unless a row says otherwise.
        num_frames: largest number of frames of a clip, evenly spaced from the first to the last; None for all.
        columns: the manifest's own name of a column by the name here, such as `{"reference": "caption"}`.
        mask_cache: folder of masks as PNG files; None for the usual one.
        frame_cache: folder of decoded frames; None to decode a video whenever its clip is read.
        chains: file of chains of thought, keyed by uid (the id) and row.
        on_missing: "error", or "drop" to skip rows with missing files and log how many.

    Returns:
        The samples in the manifest's order.

    Raises:
        DatasetError: if the manifest is missing, cannot be read, has a malformed row or two rows of one id, or lacks
            the split; if files are missing, cannot be used or lie outside the manifest's folder; or if a chain of
            thought fits no row.
    """
    path = find_manifest(root)
    rows = read_manifest(path, columns=columns)
    build = ClipBuilder(
        ClipPaths(path.parent), fps=fps, num_frames=num_frames, mask_cache=mask_cache, frame_cache=frame_cache
    )
    samples = collect_samples(rows_of_split(rows, split, path=path), build, split=split, on_missing=on_missing)
    return add_chains(samples, chains, rows)


def without_unlabelled(samples: Sequence[AVSample]) -> list[AVSample]:
    """Return the samples whose true masks are known, and log how many others there are.

    Raises:
        DatasetError: if there are no others.
    """
    labelled = [sample for sample in samples if sample.has_gt_masks]
    if not labelled:
        raise DatasetError(f"none of the {len(samples)} rows has masks: add them, or leave out skip_unlabelled")
    if len(labelled) < len(samples):
        logger.warning("skipped %d of %d rows, which have no masks", len(samples) - len(labelled), len(samples))
    return labelled
