"""Readers of masks that any system saved, a file or folder a clip, for `aurora-rl evaluate --predictions`.

DIR/<row>.npz              probs, float (F, H, W) in [0, 1], or logits of any value
DIR/<row>/<frame>.png      8-bit grey, round(255 p), frames counted from 0

`<row>` is the 0-based number of the row in metadata.csv, all splits counted. The files come from outside: sizes are
checked before anything is decoded, and nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import lzma
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy

from aurora_rl.data.containers import MediaError
from aurora_rl.data.media import read_grey_levels
from aurora_rl.files.fingerprint import fingerprint_files
from aurora_rl.files.plain import check_plain_file

#: Largest number of values in one clip's masks; 10 frames of 4K are 83 million.
MAX_VALUES = 128_000_000

_ARRAYS = ("probs", "logits")
_ROW = re.compile(r"([0-9]{1,9})(\.npz)?")
_FRAME = re.compile(r"([0-9]{1,9})\.png", re.IGNORECASE)


#: Errors of zipfile, its decoders and numpy for damaged files. Python's parser, by which numpy reads a header, raises
#: MemoryError or RecursionError (a RuntimeError) if the header is nested too deep.
DAMAGE = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, IndexError, OverflowError, RuntimeError, MemoryError),
    *(SyntaxError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
MAX_HEADER = 10_000  # bytes; numpy has the same limit, but applies it after it has read the header


class PredictionError(ValueError):
    """A saved prediction cannot be scored."""


@dataclasses.dataclass(frozen=True)
class PredictedMasks:
    """One clip's masks in memory.

    Attributes:
        mask_probs: probabilities, (F, H, W) float32 in [0, 1].
        mask_logits: logits, (F, H, W) float32; None if probabilities were saved.
    """

    mask_probs: torch.Tensor
    mask_logits: torch.Tensor | None = None


@dataclasses.dataclass(frozen=True)
class PredictionFile:
    """The files of one row's masks.

    Attributes:
        path: path of an npz file, or of a folder of PNG files.
        names: names of the folder's PNG files in any order; empty for an npz file.
        fingerprint: hash that changes if a file changes.
        problem: reason why the masks cannot be read; empty if there is none.
    """

    path: str
    names: tuple[str, ...]
    fingerprint: str
    problem: str = ""

    def read(self) -> PredictedMasks:
        """Read and check the masks.

        Raises:
            PredictionError: if a file is damaged, too large, or holds no such masks; the error names the file.
        """
        if self.problem:
            raise PredictionError(self.problem)
        return _read_npz(self.path) if self.path.endswith(".npz") else _read_folder(self.path, self.names)


@dataclasses.dataclass(frozen=True)
class PredictionFolder:
    """The content of a folder of predictions.

    Attributes:
        rows: predictions by row.
        ignored: paths in the folder that are not predictions, such as a README.
    """

    rows: dict[int, PredictionFile]
    ignored: tuple[str, ...]


def list_predictions(folder: str | os.PathLike[str]) -> PredictionFolder:
    """List the predictions in a folder without reading them.

    Raises:
        PredictionError: if the path is not a folder. If a row has two predictions, reading it raises this error.
    """
    if not os.path.isdir(folder):
        raise PredictionError(f"there is no folder {folder}: give the one that holds <row>.npz or <row>/<frame>.png")
    rows: dict[int, PredictionFile] = {}
    ignored: list[str] = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            match = _ROW.fullmatch(entry.name)
            if match is None or entry.is_dir() == bool(match[2]):
                ignored.append(entry.path)
                continue
            file = (
                PredictionFile(entry.path, (), fingerprint_files([(entry.name, _status(entry))]))
                if match[2]
                else _png_folder(entry, ignored)
            )
            row = int(match[1])
            other = rows.setdefault(row, file)
            if other is not file:
                problem = f"row {row} has two predictions, {other.path} and {file.path}: keep one"
                rows[row] = dataclasses.replace(other, problem=problem)
    return PredictionFolder(rows, tuple(ignored))


def _png_folder(folder: os.DirEntry[str], ignored: list[str]) -> PredictionFile:
    """List a row's folder; hidden files and those that are not PNG are appended to `ignored`."""
    try:
        with os.scandir(folder) as entries:
            files = list(entries)
    except OSError as error:
        problem = f"cannot list {folder.path}: {error}; restore it, or remove it"
        return PredictionFile(folder.path, (), fingerprint_files([(folder.name, _status(folder))]), problem)
    is_png = [file.name.lower().endswith(".png") and not file.name.startswith(".") for file in files]
    frames = [file for file, kept in zip(files, is_png, strict=True) if kept]
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


def _read_folder(folder: str, names: Iterable[str]) -> PredictedMasks:
    paths = [os.path.join(folder, name) for name in _in_order(folder, names)]
    try:
        levels = read_grey_levels(paths)  # (F, H, W) uint8
    except MediaError as error:
        raise PredictionError(str(error)) from error
    _check_count(levels.shape, folder)
    return PredictedMasks(torch.from_numpy(levels / np.float32(255)))


def _in_order(folder: str, names: Iterable[str]) -> list[str]:
    """Sort a folder's files by the number of their frame; the numbers must start at 0 and have no gap."""
    numbered: dict[int, str] = {}
    for name in names:
        match = _FRAME.fullmatch(name)
        if match is None:
            raise PredictionError(f"{os.path.join(folder, name)} is no frame: expected <number>.png, counted from 0")
        other = numbered.setdefault(int(match[1]), name)
        if other != name:
            raise PredictionError(f"{folder} holds frame {int(match[1])} twice, as {other} and {name}: keep one")
    missing = next((number for number in range(len(numbered)) if number not in numbered), None)
    if missing is not None:
        raise PredictionError(f"{folder} has {len(numbered)} frames but no {missing}.png: count them from 0, all there")
    if not numbered:
        raise PredictionError(f"{folder} holds no <frame>.png: write the frames, or remove the folder")
    return [numbered[number] for number in sorted(numbered)]


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


def _check_npz(path: str) -> str:
    """Return the name of the array to read, after checking type and size in its header; no data is decoded."""
    with zipfile.ZipFile(path) as archive:
        found = [name for name in _ARRAYS if f"{name}.npy" in archive.namelist()]
        if len(found) != 1:
            names = ", ".join(archive.namelist()[:5])
            raise PredictionError(f"{path} holds {names or 'nothing'}: expected one array, probs or logits")
        info = archive.getinfo(f"{found[0]}.npy")
        with archive.open(info) as file:
            shape, dtype = _read_header(file, path)
            header_bytes = file.tell()
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise PredictionError(f"{path}: {found[0]} is {dtype}, expected float16, float32 or float64")
    if len(shape) != 3:
        raise PredictionError(f"{path}: {found[0]} has shape {shape}, expected (F, H, W)")
    _check_count(shape, path)
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


def _check_count(shape: tuple[int, ...], path: str) -> None:
    count = int(np.prod(shape, dtype=object))
    if not 0 < count <= MAX_VALUES:
        raise PredictionError(f"{path} holds masks of shape {shape}: expected at least one value, at most {MAX_VALUES}")


def _first_frame(wrong: torch.Tensor) -> int:
    return int(wrong.flatten(1).any(1).int().argmax())
