"""AVSBench (S4, MS3 and AVSS) as a list of samples: all sounding objects are to be segmented, without a sentence.

Each clip gets the reference `SOUNDING_REFERENCE`, so that the code of referring segmentation trains and evaluates it.
A row of each table, and the paths of its files:

    s4_meta_data.csv   name,start,category,split               --0PQM4-hqg,30000,race_car,train
        visual_frames/<split>/<category>/<name>/<name>_{1..5}.png    audio_wav/<split>/<category>/<name>.wav
        gt_masks/<split>/<category>/<name>/<name>_{1..5}.png         bits
    ms3_meta_data.csv  the name in column 0, and split
        visual_frames/<name>/<name>.mp4_{1..5}.png                   audio_wav/<split>/<name>.wav
        gt_masks/<split>/<name>/<name>_{1..5}.png                    palette indices
    metadata.csv       vid,uid,s_min,s_sec,a_obj,split,label
        <label>/<uid>/frames/{0..}.jpg, audio.wav, labels_semantic/{0..}.png or labels_rgb/{0..}.png

There is one frame a second. Every mask pixel other than 0 is object, as in `media.read_masks`: AVSS marks class 45 by
the index 45, so a test for 255 would find nothing.

The single-source clips of the train split (S4, and v1s of AVSS) are annotated in their first frame only. Such a clip
becomes a sample of that frame and the whole sound. This is a known simplification: the model does not see the four
frames without truth. To show them, every loss, reward, metric and picture would have to know frames without truth.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aurora_rl.data.chains import ChainFile, add_chains
from aurora_rl.data.files import (
    AnyRow,
    BenchmarkFiles,
    DatasetError,
    OnMissing,
    Row,
    collect_samples,
    list_images,
    read_table,
    rows_of_split,
)
from aurora_rl.data.sample import AVSample

SOUNDING_REFERENCE = "the sounding objects"  # the reference of every clip
SOUNDING_CATEGORY = "sounding objects"  # category of MS3, whose table names none

S4_TABLE, MS3_TABLE, AVSS_TABLE = "s4_meta_data.csv", "ms3_meta_data.csv", "metadata.csv"
S4_COLUMNS, MS3_COLUMNS = ("name", "category", "split"), ("split",)
AVSS_COLUMNS = ("uid", "a_obj", "split", "label")
MEDIA_FOLDERS = "visual_frames/, audio_wav/ and gt_masks/"
FPS = 1.0
NUM_FRAMES = {"v1s": 5, "v1m": 5, "v2": 10}  # by label: clips of S4, of MS3, and the longer clips of AVSS
TRAIN_SPLIT = "train"
AVSS_MASK_FOLDERS = ("labels_semantic", "labels_rgb")  # the first that is there: both mark the same pixels


@dataclasses.dataclass(frozen=True)
class _Row(Row):
    """One line of a table; `label` is AVSS's name of the subset, v1s for S4 and v1m for MS3."""

    label: str

    @property
    def may_have_first_mask_only(self) -> bool:
        return self.label == "v1s" and self.split == TRAIN_SPLIT


class _Clip(NamedTuple):
    """The fields of a clip in a table."""

    uid: str
    category: str
    label: str


def load_avsbench_s4(
    root: str | os.PathLike[str],
    split: str,
    *,
    chains: ChainFile | None = None,
    on_missing: OnMissing = "error",
) -> list[AVSample]:
    """List the samples of a split of S4, one sounding object a clip; clips of train have their first frame only.

    Args:
        root: folder with s4_meta_data.csv, and visual_frames/, audio_wav/ and gt_masks/ beside it or in s4_data/.
        split: train, val or test.
        chains: file of chains of thought (`tasks.reference_segmentation.chain_file`) keyed by uid and row.
        on_missing: "error", or "drop" to skip rows with missing files and log how many.

    Returns:
        The samples in the table's order, each with 5 frames and masks; 1 for a clip of train with its first mask only.

    Raises:
        DatasetError: if the table is malformed or lacks the split, if files are missing or lie outside the root, or if
            a chain of thought fits no row.
    """
    path = Path(root) / S4_TABLE
    rows = _read_rows(path, S4_COLUMNS, _parse_s4, header="name,start,category,split", media=MEDIA_FOLDERS)
    find = functools.partial(_build_s4_sample, media=_media_folder(path.parent, "s4_data"))
    return _load(path, rows, split, find, chains=chains, on_missing=on_missing)


def load_avsbench_ms3(
    root: str | os.PathLike[str],
    split: str,
    *,
    chains: ChainFile | None = None,
    on_missing: OnMissing = "error",
) -> list[AVSample]:
    """List the samples of a split of MS3, several sounding objects a clip; 5 frames and 5 masks each.

    Args:
        root: folder that holds ms3_meta_data.csv, and the folders of `load_avsbench_s4` beside it or in ms3_data/.
        split: train, val or test.
        chains: file of chains of thought keyed by uid and row, see `load_avsbench_s4`.
        on_missing: "error", or "drop" to skip rows with missing files and log how many.

    Returns:
        The samples in the table's order, all of the category `SOUNDING_CATEGORY`.

    Raises:
        DatasetError: for the reasons of `load_avsbench_s4`.
    """
    path = Path(root) / MS3_TABLE
    rows = _read_rows(path, MS3_COLUMNS, _parse_ms3, header="<name>,split", media=MEDIA_FOLDERS)
    find = functools.partial(_build_ms3_sample, media=_media_folder(path.parent, "ms3_data"))
    return _load(path, rows, split, find, chains=chains, on_missing=on_missing)


def load_avsbench_avss(
    root: str | os.PathLike[str],
    split: str,
    *,
    chains: ChainFile | None = None,
    on_missing: OnMissing = "error",
) -> list[AVSample]:
    """List the samples of a split of AVSS; its 71 classes become one mask of all that sounds.

    Args:
        root: folder that holds metadata.csv, v1s/, v1m/ and v2/.
        split: train, val or test.
        chains: file of chains of thought keyed by uid and row, see `load_avsbench_s4`.
        on_missing: "error", or "drop" to skip rows with missing files and log how many.

    Returns:
        The samples in the table's order, with 5 frames for v1s and v1m and 10 for v2; 1 for a clip of v1s in train with
        its first mask only.

    Raises:
        DatasetError: for the reasons of `load_avsbench_s4`, or if a label is unknown.
    """
    path = Path(root) / AVSS_TABLE
    header = "vid,uid,s_min,s_sec,a_obj,split,label"
    rows = _read_rows(path, AVSS_COLUMNS, _parse_avss, header=header, media="v1s/, v1m/ and v2/")
    return _load(path, rows, split, _build_avss_sample, chains=chains, on_missing=on_missing)


def _read_rows(
    path: Path, columns: Sequence[str], parse: Callable[[dict[str, Any]], _Clip], *, header: str, media: str
) -> list[_Row]:
    """Read all rows of a table; `media` names the folders beside it, for the error."""
    rows = []
    for number, fields in enumerate(read_table(path, columns, header=header, layout=f"{path.name}, {media}")):
        line = number + 2  # line 1 of the file is the header
        try:
            clip = parse(fields)
        except DatasetError as error:
            raise DatasetError(f"{path}:{line} {error}: fix or drop the row") from error
        rows.append(
            _Row(
                uid=clip.uid,
                row=number,
                split=fields["split"],
                category=clip.category,
                reference=SOUNDING_REFERENCE,
                origin=f"{path.name}:{line}",
                label=clip.label,
            )
        )
    return rows


def _parse_s4(fields: dict[str, Any]) -> _Clip:
    return _Clip(fields["name"], fields["category"], "v1s")


def _parse_ms3(fields: dict[str, Any]) -> _Clip:
    name = next(iter(fields.values()))  # the first column has had several titles
    if not name:
        raise DatasetError("has no name in its first column")
    return _Clip(name, SOUNDING_CATEGORY, "v1m")


def _parse_avss(fields: dict[str, Any]) -> _Clip:
    if fields["label"] not in NUM_FRAMES:
        raise DatasetError(
            f"(uid {fields['uid']!r}) has the label {fields['label']!r}, expected one of {sorted(NUM_FRAMES)}"
        )
    return _Clip(fields["uid"], fields["a_obj"], fields["label"])


def _load(
    path: Path,
    rows: list[AnyRow],
    split: str,
    build: Callable[[BenchmarkFiles, AnyRow], AVSample],
    *,
    chains: ChainFile | None,
    on_missing: OnMissing,
) -> list[AVSample]:
    build_one = functools.partial(build, BenchmarkFiles(path.parent))
    samples = collect_samples(rows_of_split(rows, split, path=path), build_one, split=split, on_missing=on_missing)
    return add_chains(samples, chains, rows)


def _media_folder(root: Path, name: str) -> tuple[str, ...]:
    """Find the media: the owners unpack them into a folder beside the table, mirrors often next to the table."""
    return (name,) if (root / name).is_dir() else ()


def _build_s4_sample(files: BenchmarkFiles, row: _Row, *, media: tuple[str, ...]) -> AVSample:
    clip = (row.split, row.category, row.uid)
    return _build_sample(
        files,
        row,
        frames=files.path(row, *media, "visual_frames", *clip),
        masks=files.path(row, *media, "gt_masks", *clip),
        audio=(*media, "audio_wav", row.split, row.category, f"{row.uid}.wav"),
        frame_prefix=f"{row.uid}_",
        mask_prefix=f"{row.uid}_",
        first=1,
    )


def _build_ms3_sample(files: BenchmarkFiles, row: _Row, *, media: tuple[str, ...]) -> AVSample:
    return _build_sample(
        files,
        row,
        frames=files.path(row, *media, "visual_frames", row.uid),
        masks=files.path(row, *media, "gt_masks", row.split, row.uid),
        audio=(*media, "audio_wav", row.split, f"{row.uid}.wav"),
        frame_prefix=f"{row.uid}.mp4_",
        mask_prefix=f"{row.uid}_",
        first=1,
    )


def _build_avss_sample(files: BenchmarkFiles, row: _Row) -> AVSample:
    folders = [files.path(row, row.label, row.uid, name) for name in AVSS_MASK_FOLDERS]
    return _build_sample(
        files,
        row,
        frames=files.path(row, row.label, row.uid, "frames"),
        masks=next((folder for folder in folders if folder.is_dir()), folders[-1]),
        audio=(row.label, row.uid, "audio.wav"),
        first=0,
    )


def _build_sample(
    files: BenchmarkFiles,
    row: _Row,
    *,
    frames: Path,
    masks: Path,
    audio: tuple[str, ...],
    first: int,
    frame_prefix: str = "",
    mask_prefix: str = "",
) -> AVSample:
    """Make the sample of the folders' files; it has its first frame only where only that one has a mask."""
    num_frames = NUM_FRAMES[row.label]
    num_masks = 1 if row.may_have_first_mask_only and len(list_images(masks, "masks")) == 1 else num_frames
    find = functools.partial(files.numbered, row, first=first)
    frame_paths = find(frames, kind="frames", num_expected=num_frames, prefix=frame_prefix)
    mask_paths = find(masks, kind="masks", num_expected=num_masks, prefix=mask_prefix)
    return row.to_sample(
        media_id=row.uid,
        fps=FPS,
        frame_paths=frame_paths[:num_masks],
        audio_path=files.audio(row, *audio),
        mask_paths=mask_paths,
    )
