"""Readers of masks that any system saved, a file or folder a row or a clip, for `aurora-rl evaluate --predictions`.

DIR/<name>.npz             probs, float (F, H, W) in [0, 1], logits of any value, or masks, bool or 0 and 1 (or 255)
DIR/<name>/<frame>.png     8-bit grey, round(255 p); or a palette of object ids, as DAVIS has it, or 1 bit
DIR/<name>.json            COCO masks of one clip (`coco_masks`), as DIR/<name>/masks.json, which `segment` writes
DIR/objects.json           {clip: {object id: id or row}}, for palettes of several objects

`<name>` is the 0-based number of the row in the benchmark's table, all splits counted, or the row's id, or its clip
(`mask_names` tells which). Frames are counted from 0. The files come from outside: sizes are checked before anything is
decoded, and nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import lzma
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import PurePath
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy

from aurora_rl.data.containers import MediaError
from aurora_rl.data.media import read_mask_levels
from aurora_rl.data.sample import AVSample
from aurora_rl.evaluation.coco_masks import CocoFile
from aurora_rl.evaluation.predictions import (
    BadPrediction,
    PredictedMasks,
    Prediction,
    PredictionError,
    add_prediction,
    check_count,
    num_frames_of,
)
from aurora_rl.files.fingerprint import fingerprint_files
from aurora_rl.files.plain import check_plain_file

_ARRAYS = ("probs", "logits", "masks")
ROW_NUMBER = re.compile(r"[0-9]{1,9}")
_FRAME = re.compile(r"([0-9]{1,9})\.png", re.IGNORECASE)
#: COCO file that `aurora-rl segment` writes into its folder.
COCO_FILE = "masks.json"
OBJECTS_FILE = "objects.json"


#: Errors of zipfile, its decoders and numpy for damaged files. Python's parser, by which numpy reads a header, raises
#: MemoryError or RecursionError (a RuntimeError) if the header is nested too deep.
DAMAGE = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, IndexError, OverflowError, RuntimeError, MemoryError),
    *(SyntaxError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
MAX_HEADER = 10_000  # bytes; numpy has the same limit, but applies it after it has read the header


@dataclasses.dataclass(frozen=True)
class PredictionFile:
    """The files of one row's masks, or of one clip's.

    Attributes:
        path: path of an npz file, or of a folder of PNG files.
        names: names of the folder's PNG files in any order; empty for an npz file.
        fingerprint: hash that changes if a file changes.
        objects: ids of a palette that are the row's object; None for all but 0.
    """

    path: str
    names: tuple[str, ...]
    fingerprint: str
    objects: tuple[int, ...] | None = None

    def read(self, sample: AVSample | None = None) -> PredictedMasks:
        """Read and check the masks.

        Args:
            sample: row of the masks, whose files tell how frames may be named; None for numbers from 0 alone.

        Raises:
            PredictionError: if a file is damaged, too large, or holds no such masks; the error names the file.
        """
        if self.path.endswith(".npz"):
            if self.objects is not None:
                raise PredictionError(f"{self.path} names a clip of several objects: name it by row or id instead")
            return _read_npz(self.path)
        return _read_folder(self.path, self.names, sample=sample, objects=self.objects)


Listed = PredictionFile | CocoFile | BadPrediction


@dataclasses.dataclass(frozen=True)
class PredictionFolder:
    """The content of a folder of predictions.

    Attributes:
        named: predictions by name, several where files of different kinds have one name.
        ignored: paths in the folder that are not predictions, such as a README.
    """

    named: tuple[tuple[str, Listed], ...]
    ignored: tuple[str, ...]

    @property
    def rows(self) -> dict[int, Prediction]:
        """The predictions by row, of those that are named by one."""
        rows: dict[int, Prediction] = {}
        for name, prediction in self.named:
            if ROW_NUMBER.fullmatch(name):
                add_prediction(rows, int(name), prediction)
        return rows


def list_predictions(folder: str | os.PathLike[str]) -> PredictionFolder:
    """List the predictions in a folder without reading them.

    Raises:
        PredictionError: if the path is not a folder. If a row has two predictions, reading it raises this error.
    """
    if not os.path.isdir(folder):
        raise PredictionError(f"there is no folder {folder}: give the one that holds <row>.npz or <row>/<frame>.png")
    named: list[tuple[str, Listed]] = []
    ignored: list[str] = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name == OBJECTS_FILE or entry.name.startswith("."):
                ignored += [entry.path] * (entry.name != OBJECTS_FILE)
                continue
            found = _list_entry(entry, ignored)
            if found is None:
                ignored.append(entry.path)
            else:
                named.append(found)
    return PredictionFolder(tuple(named), tuple(ignored))


def _list_entry(entry: os.DirEntry[str], ignored: list[str]) -> tuple[str, Listed] | None:
    """Return an entry's name and its prediction; None if it is none."""
    stem, suffix = os.path.splitext(entry.name)
    if suffix in (".npz", ".json"):
        if entry.is_dir():
            return None
        status = fingerprint_files([(entry.name, _status(entry))])
        return stem, (PredictionFile(entry.path, (), status) if suffix == ".npz" else CocoFile(entry.path, status))
    return (entry.name, prediction) if entry.is_dir() and (prediction := _list_folder(entry, ignored)) else None


def _list_folder(folder: os.DirEntry[str], ignored: list[str]) -> Listed | None:
    """List a folder of masks; hidden files and those that are not PNG are appended to `ignored`.

    A folder without masks is no prediction, unless it is named by a row.
    """
    try:
        with os.scandir(folder) as entries:
            files = list(entries)
    except OSError as error:
        problem = f"cannot list {folder.path}: {error}; restore it, or remove it"
        return BadPrediction(folder.path, fingerprint_files([(folder.name, _status(folder))]), problem)
    is_png = [file.name.lower().endswith(".png") and not file.name.startswith(".") for file in files]
    frames = [file for file, kept in zip(files, is_png, strict=True) if kept]
    coco = next((file for file in files if file.name == COCO_FILE), None)
    if coco is not None and not frames:
        return CocoFile(coco.path, fingerprint_files([(coco.name, _status(coco))]))
    if not frames and not ROW_NUMBER.fullmatch(folder.name):
        return None
    ignored += sorted(file.path for file, kept in zip(files, is_png, strict=True) if not kept)
    names = tuple(frame.name for frame in frames)
    return PredictionFile(folder.path, names, fingerprint_files((frame.name, _status(frame)) for frame in frames))


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    """Return the status of the file; that of the link itself if it is broken, which reading will report."""
    try:
        return entry.stat()
    except OSError:
        return entry.stat(follow_symlinks=False)


# ------------------------------------------------------------------------------------------------ PNG files


def _read_folder(
    folder: str, names: Sequence[str], *, sample: AVSample | None, objects: Sequence[int] | None
) -> PredictedMasks:
    paths = [os.path.join(folder, name) for name in _in_order(folder, names, sample)]
    try:
        levels, mode = read_mask_levels(paths)  # (F, H, W) uint8 or bool
    except MediaError as error:
        raise PredictionError(str(error)) from error
    check_count(levels.shape, folder)
    if objects is not None and mode != "P":
        raise PredictionError(
            f"{folder} names a clip of several objects, but {os.path.basename(paths[0])} is no palette of object ids "
            "(PNG of mode P): save one, or a folder for each row"
        )
    if mode == "L":
        return PredictedMasks(torch.from_numpy(levels / np.float32(255)))
    masks = levels > 0 if objects is None else np.isin(levels, objects)
    return PredictedMasks(torch.from_numpy(masks.astype(np.float32)))


def _in_order(folder: str, names: Sequence[str], sample: AVSample | None) -> list[str]:
    """Sort a folder's files by the number of their frame; the numbers must start at 0 and have no gap.

    With the row's sample, they may instead start at 1, if they are as many as its frames, or have the names of the
    files of its frames or masks.
    """
    if sample is not None and (named := _named_as(names, sample)):
        return named
    numbered: dict[int, str] = {}
    for name in names:
        match = _FRAME.fullmatch(name)
        if match is None:
            raise PredictionError(f"{os.path.join(folder, name)} is no frame: expected <number>.png, counted from 0")
        other = numbered.setdefault(int(match[1]), name)
        if other != name:
            raise PredictionError(f"{folder} holds frame {int(match[1])} twice, as {other} and {name}: keep one")
    in_order = [numbered[number] for number in sorted(numbered)]
    if sample is not None and sorted(numbered) == list(range(1, (num_frames_of(sample) or 0) + 1)):
        return in_order
    missing = next((number for number in range(len(numbered)) if number not in numbered), None)
    if missing is not None:
        raise PredictionError(f"{folder} has {len(numbered)} frames but no {missing}.png: count them from 0, all there")
    if not numbered:
        raise PredictionError(f"{folder} holds no <frame>.png: write the frames, or remove the folder")
    return in_order


def _named_as(names: Sequence[str], sample: AVSample) -> list[str]:
    """Sort files that are named as the sample's frames or masks are; an empty list if they are not."""
    own = {PurePath(name).stem: name for name in names}
    for paths in (sample.mask_paths, sample.frame_paths):
        stems = [PurePath(path).stem for path in paths]
        if not all(stem.isdecimal() for stem in stems) and len(own) == len(names) and own.keys() == set(stems):
            return [own[stem] for stem in stems]
    return []


# ------------------------------------------------------------------------------------------------ npz files


def _read_npz(path: str) -> PredictedMasks:
    try:
        check_plain_file(path)
        name = _check_npz(path)
        with np.load(path, allow_pickle=False) as arrays, np.errstate(over="ignore"):  # a huge logit becomes infinite
            array = arrays[name].astype(np.float32)
    except PredictionError:
        raise
    except DAMAGE as error:
        raise PredictionError(
            f"cannot read {path}: {str(error) or type(error).__name__}; write it again by numpy.savez"
        ) from error
    values = torch.from_numpy(array)
    if name == "masks":
        return PredictedMasks(_check_masks(values, path))
    if name == "logits":
        if values.isnan().any():
            raise PredictionError(f"{path}: logits hold NaN, first in frame {_first_frame(values.isnan())}")
        return PredictedMasks(values.sigmoid(), values)
    wrong = ~((values >= 0) & (values <= 1))  # also finds NaN
    if wrong.any():
        raise PredictionError(
            f"{path}: probs hold {values[wrong][0]:g}, first in frame {_first_frame(wrong)}; expected values in "
            "[0, 1], or an array named logits"
        )
    return PredictedMasks(values)


def _check_masks(values: torch.Tensor, path: str) -> torch.Tensor:
    """Return masks of 0 and 1, or of 0 and 255, as 0 and 1."""
    levels = values.unique()
    if not all(level in (0, 1, 255) for level in levels.tolist()) or (1 in levels and 255 in levels):
        raise PredictionError(
            f"{path}: masks hold the values {levels[:6].tolist()}: expected True and False, 0 and 1, or 0 and 255; one "
            "object a file"
        )
    return (values > 0).float()


def _check_npz(path: str) -> str:
    """Return the name of the array to read, after checking type and size in its header; no data is decoded."""
    with zipfile.ZipFile(path) as archive:
        found = [name for name in _ARRAYS if f"{name}.npy" in archive.namelist()]
        if len(found) != 1:
            names = ", ".join(archive.namelist()[:5])
            raise PredictionError(f"{path} holds {names or 'nothing'}: expected one array, probs, logits or masks")
        info = archive.getinfo(f"{found[0]}.npy")
        with archive.open(info) as file:
            shape, dtype = _read_header(file, path)
            header_bytes = file.tell()
    if found[0] == "masks":
        if dtype.kind not in "bui":
            raise PredictionError(
                f"{path}: masks is {dtype}, expected bool or whole numbers; probabilities are `probs`"
            )
    elif dtype.kind != "f" or dtype.itemsize > 8:
        raise PredictionError(f"{path}: {found[0]} is {dtype}, expected float16, float32 or float64")
    if len(shape) != 3:
        raise PredictionError(f"{path}: {found[0]} has shape {shape}, expected (F, H, W)")
    check_count(shape, path)
    if info.file_size != header_bytes + int(np.prod(shape)) * dtype.itemsize:
        raise PredictionError(f"{path} is damaged: its size does not fit its shape {shape}; write it again")
    return found[0]


def _read_header(file: IO[bytes], path: str) -> tuple[tuple[int, ...], np.dtype]:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise PredictionError(f"{path} has an array of npy version {version}: write it by numpy.savez")
    start = file.tell()
    length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
    if length > MAX_HEADER:
        raise PredictionError(f"{path} has an array with a header of {length} bytes: write it by numpy.savez")
    file.seek(start)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _first_frame(wrong: torch.Tensor) -> int:
    return int(wrong.flatten(1).any(1).int().argmax())
