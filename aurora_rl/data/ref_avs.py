"""Ref-AVSBench, and other data in its layout such as our synthetic benchmark, as a list of samples.

Rows of metadata.csv become `AVSample`s here, whose files exist and agree in number; `media.load_clip` reads the files
later. Two real rows, of which the second is null (its audio is muted):

    vid,uid,split,fid,exp
    --KCIeTv6PM_14000_24000,--KCIeTv6PM_14000_24000_cat_1,val,0,The object having white and gray fur.
    ciaPfihYEEk_3000_13000,null_m-ciaPfihYEEk_3000_13000_null_1,train,0,The object making a sound with a lower rhythm

    media/<id>/frames/{0..9}.jpg    media/<id>/audio.wav    gt_mask/<id>/fid_<fid>/0000{0..9}.png

`<id>` comes from the uid, because `vid` lacks the `null_c-` or `null_m-` of a null row: by `vid`, a null reference
would get a real object's masks as its truth.

R2-AVSBench (TGS-Agent, arXiv 2508.04418) asks other questions about these clips. Its table, R2AVSBench_metadata.csv,
has the same columns (jasongief/TGS-Agent, dataset/unified_dataset.py). It lies beside the same media/ and gt_mask/, and
is named in the place of their folder.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.data.chains import ChainFile, add_chains
from aurora_rl.data.files import (
    BenchmarkFiles,
    DatasetError,
    OnMissing,
    Row,
    collect_samples,
    list_images,
    read_table,
    rows_of_split,
)
from aurora_rl.data.sample import NULL_CATEGORY, AVSample

logger = logging.getLogger(__name__)

METADATA_FILE = "metadata.csv"
METADATA_COLUMNS = ("uid", "split", "fid", "exp")
UNFINISHED_SPLIT = "TODO"  # 25 rows of the official file that its authors never assigned
CROSSED_AUDIO_PREFIX = "null_c-"
NULL_PREFIXES = (CROSSED_AUDIO_PREFIX, "null_m-")  # crossed and muted audio


@dataclasses.dataclass(frozen=True)
class MetadataRow(Row):
    """One line of metadata.csv."""

    fid: str

    @property
    def media_id(self) -> str:
        """The uid without category and number; a null prefix stays."""
        return self.uid.rsplit("_", 2)[0]

    @property
    def is_null(self) -> bool:
        """Whether the reference points at nothing, so that the true masks are empty."""
        return self.category == NULL_CATEGORY


def table_path(root: str | os.PathLike[str]) -> Path:
    """Return the table of a root: metadata.csv in the folder that it names, or the CSV file itself."""
    path = Path(root)
    return path if path.suffix == ".csv" else path / METADATA_FILE


def load_ref_avs(
    root: str | os.PathLike[str],
    split: str,
    *,
    fps: float = 1.0,
    num_frames: int | None = 10,
    chains: ChainFile | None = None,
    on_missing: OnMissing = "error",
) -> list[AVSample]:
    """List the samples of one split, and check that the files of each are there.

    Args:
        root: folder of the benchmark, which holds metadata.csv, media/ and gt_mask/; or another table beside these.
        split: name of the split as in metadata.csv.
        fps: frames a second of the clips.
        num_frames: number of frames and masks that each clip must have; None for any number, the same for both.
        chains: file of chains of thought (`tasks.reference_segmentation.chain_file`), keyed by uid and row, which
            fill `chain`, `reference_type`, `seen` and `heard`; rows without a record keep None there.
        on_missing: "error", or "drop" to skip rows with missing files and log how many.

    Returns:
        The samples in the file's order. Duplicate rows of the file stay; they differ in `row`.

    Raises:
        DatasetError: if metadata.csv is malformed or lacks the split, if files are missing or lie outside the root, or
            if a chain of thought fits no row.
    """
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}: expected a positive number, or None for any")
    path = table_path(root)
    rows = read_metadata(path)
    build = functools.partial(_build_sample, BenchmarkFiles(path.parent), fps=fps, num_frames=num_frames)
    finished = [row for row in rows if row.split != UNFINISHED_SPLIT]
    if len(finished) < len(rows):
        logger.warning("%s: dropped %d row(s) of split %r", path, len(rows) - len(finished), UNFINISHED_SPLIT)
    samples = collect_samples(rows_of_split(finished, split, path=path), build, split=split, on_missing=on_missing)
    return add_chains(samples, chains, rows)


def load_ref_avs_truth(
    root: str | os.PathLike[str], splits: Sequence[str], *, chains: ChainFile | None = None
) -> list[AVSample]:
    """List the samples of some splits with masks only, to score the predictions of any system.

    Media are not needed. Only a null reference without masks gets the paths of its frames, so that they can be counted,
    if the frames exist; `frame_paths` is empty otherwise.

    Args:
        root: folder of the benchmark, which holds metadata.csv and gt_mask/; or another table beside these.
        splits: names of the splits as in metadata.csv.
        chains: file of chains of thought, see `load_ref_avs`; here only `reference_type` matters.

    Returns:
        The samples in the order of the splits, each split in the file's order; `audio_path` is None.

    Raises:
        DatasetError: for the reasons of `load_ref_avs`.
    """
    path = table_path(root)
    rows = read_metadata(path)
    build = functools.partial(_build_truth, BenchmarkFiles(path.parent))
    samples = [
        sample
        for split in splits
        for sample in collect_samples(rows_of_split(rows, split, path=path), build, split=split)
    ]
    return add_chains(samples, chains, rows)


def _build_truth(files: BenchmarkFiles, row: MetadataRow) -> AVSample:
    mask_paths = find_masks(files, row, num_frames=None)
    has_frames = not mask_paths and list_images(files.path(row, "media", row.media_id, "frames"), "frames")
    return row.to_sample(
        media_id=row.media_id,
        fps=1.0,
        frame_paths=find_frames(files, row, num_frames=None) if has_frames else (),
        audio_path=None,
        mask_paths=mask_paths,
    )


def read_metadata(path: Path, *, malformed: dict[int, str] | None = None) -> list[MetadataRow]:
    """Read all rows of metadata.csv, unfinished splits included, so that `row` counts the file's own rows.

    Args:
        path: the CSV file.
        malformed: dict that receives the problem of each row that cannot be parsed, by the row's number; such rows are
            skipped. With None the first such row is an error.

    Raises:
        DatasetError: for the reasons of `read_table`, or if a uid has not the form <id>_<category>_<number>.
    """
    table = read_table(
        path,
        METADATA_COLUMNS,
        header="vid,uid,split,fid,exp",
        layout=f"{METADATA_FILE}, media/ and gt_mask/",
        malformed=malformed,
    )
    rows: list[MetadataRow] = []
    for row, fields in enumerate(table):
        if malformed is not None and row in malformed:
            continue
        try:
            rows.append(_parse_row(fields, row=row, path=path))
        except DatasetError as error:
            if malformed is None:
                raise
            malformed[row] = str(error)
    return rows


def find_test_splits(root: str | os.PathLike[str]) -> list[str]:
    """Find the splits of metadata.csv whose name begins with "test".

    Raises:
        DatasetError: if there are none.
    """
    path = table_path(root)
    splits = sorted({row.split for row in read_metadata(path)})
    found = [split for split in splits if split.startswith("test")]
    if not found:
        raise DatasetError(f"{path} has no test split: choose among {splits}")
    return found


def read_categories(root: str | os.PathLike[str], split: str) -> set[str]:
    """Read the categories of a split's rows in metadata.csv.

    Raises:
        DatasetError: if there is no such split.
    """
    path = table_path(root)
    return {row.category for row in rows_of_split(read_metadata(path), split, path=path)}


def _parse_row(fields: Mapping[str, Any], *, row: int, path: Path) -> MetadataRow:
    uid = fields["uid"]
    line = row + 2  # line 1 of the file is the header
    parts = uid.rsplit("_", 2)
    if len(parts) != 3 or not all(parts):
        raise DatasetError(f"{path}:{line} has the uid {uid!r}: expected <id>_<category>_<number>")
    return MetadataRow(
        uid=uid,
        row=row,
        split=fields["split"],
        category=parts[1],
        reference=fields["exp"],
        origin=f"{path.name}:{line}",
        fid=fields["fid"],
    )


def _build_sample(files: BenchmarkFiles, row: MetadataRow, *, fps: float, num_frames: int | None) -> AVSample:
    frame_paths = find_frames(files, row, num_frames=num_frames)
    return row.to_sample(
        media_id=row.media_id,
        fps=fps,
        frame_paths=frame_paths,
        audio_path=find_audio(files, row),
        mask_paths=find_masks(files, row, num_frames=len(frame_paths)),
    )


def find_frames(files: BenchmarkFiles, row: MetadataRow, *, num_frames: int | None) -> tuple[str, ...]:
    """List a row's `num_frames` frames (None: any number) in time order; raises as `BenchmarkFiles.numbered` does."""
    folder = files.path(row, "media", row.media_id, "frames")
    return files.numbered(row, folder, kind="frames", num_expected=num_frames)


def find_masks(files: BenchmarkFiles, row: MetadataRow, *, num_frames: int | None) -> tuple[str, ...]:
    """List a row's masks, see `find_frames`; none for a null row without masks."""
    folder = files.path(row, "gt_mask", row.media_id, f"fid_{row.fid}")
    if row.is_null and not list_images(folder, "masks"):
        return ()
    return files.numbered(row, folder, kind="masks", num_expected=num_frames)


def find_audio(files: BenchmarkFiles, row: MetadataRow) -> str:
    """Find the clip's audio file; raises as `BenchmarkFiles.audio` does."""
    # Where both files exist, the one in media_cross is the crossed audio that makes the reference null.
    is_crossed = row.media_id.startswith(CROSSED_AUDIO_PREFIX)
    if is_crossed and files.path(row, "media_cross", row.media_id, "audio.wav").is_file():
        return files.audio(row, "media_cross", row.media_id, "audio.wav")
    return files.audio(row, "media", row.media_id, "audio.wav")
