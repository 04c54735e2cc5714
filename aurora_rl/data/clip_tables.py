"""Own clips as a data set of the library `datasets`: the rows of a manifest whose media are columns of tables.

`benchmark: clips` reads, beside a manifest, a folder of `save_to_disk`, a repository of the hub as a folder or by its
name, and a Parquet file whose columns hold media. The columns are those of a manifest (`manifest_rows`). A medium is a
Video, Image, List(Image) or Audio, bytes, or the path of a file beside the tables. Nothing is decoded here: the bytes
are unpacked once into a cache, under names of their content, and from there on they are files like any other.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aurora_rl.data.chains import ChainFile, add_chains
from aurora_rl.data.clip_files import ClipBuilder, ClipPaths
from aurora_rl.data.clip_sources import DISK_FILES, is_hub_name
from aurora_rl.data.files import DatasetError, OnMissing, Row, UnsafePathError, collect_samples, rows_of_split
from aurora_rl.data.manifest_rows import DEFAULT_SPLIT, ManifestRow, is_missing, read_row, rename
from aurora_rl.data.sample import AVSample
from aurora_rl.files.atomic import write_whole
from aurora_rl.files.cache_folder import cache_folder
from aurora_rl.files.existing import AnyPath
from aurora_rl.files.fingerprint import fingerprint_bytes, fingerprint_values
from aurora_rl.files.plain import read_records

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

#: Columns that may hold media, with the suffix of a file whose kind its first bytes do not tell.
MEDIA = {"video": ".mp4", "frames": ".jpg", "audio": ".wav", "masks": ".png"}
#: First bytes of a file, and the suffix of its kind.
KINDS = (
    (re.compile(rb"\x89PNG\r\n"), ".png"),
    (re.compile(rb"\xff\xd8\xff"), ".jpg"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), ".webp"),
    (re.compile(rb"RIFF....WAVE", re.DOTALL), ".wav"),
    (re.compile(rb"RIFF....AVI ", re.DOTALL), ".avi"),
    (re.compile(rb"....ftyp", re.DOTALL), ".mp4"),
    (re.compile(rb"\x1aE\xdf\xa3"), ".mkv"),
    (re.compile(rb"fLaC"), ".flac"),
    (re.compile(rb"OggS"), ".ogg"),
    (re.compile(rb"ID3|\xff[\xf2\xf3\xfb]"), ".mp3"),
    (re.compile(rb"PK\x03\x04"), ".npz"),
)
#: Beginning of the text that stands for a medium in the cache; no path of a data set may begin like this.
MARK = "aurora-media:"
STORED = re.compile(rf"{MARK}(?P<name>[0-9a-f]{{2}}/[0-9a-f]{{32}}\.[a-z0-9]{{1,5}})")
ROWS_AT_ONCE = 8


def load_table(
    root: AnyPath,
    split: str,
    *,
    fps: float = 1.0,
    num_frames: int | None = 10,
    columns: Mapping[str, str] | None = None,
    media_cache: AnyPath | None = None,
    mask_cache: AnyPath | None = None,
    frame_cache: AnyPath | None = None,
    chains: ChainFile | None = None,
    on_missing: OnMissing = "error",
) -> list[AVSample]:
    """List the samples of one split, and unpack media that are not unpacked yet.

    Args:
        root: folder of `save_to_disk`, folder or name of a repository of the hub, or a Parquet file.
        split: name of the split: a value of the column `split` where there is one, else a split of the data set.
        media_cache: folder of the unpacked media, which data sets may share; None for the usual one.
        fps, num_frames, columns, mask_cache, frame_cache, chains, on_missing: the arguments of `clips.load_clips`.

    Raises:
        DatasetError: if the data set or the split is missing, or a row is malformed, names a file outside the data
            set's folder, or holds media that are not there.
    """
    rows, paths = read_table_rows(root, columns=columns, media_cache=media_cache)
    source = Path(os.fspath(root))
    build = ClipBuilder(paths, fps=fps, num_frames=num_frames, mask_cache=mask_cache, frame_cache=frame_cache)
    chosen = rows_of_split(rows, split, path=source)

    def make(row: ManifestRow) -> AVSample:
        return _with_clip_of_content(build(row), row)

    samples = collect_samples(chosen, make, split=split, on_missing=on_missing)
    return add_chains(samples, chains, rows)


def read_table_rows(
    root: AnyPath,
    *,
    columns: Mapping[str, str] | None = None,
    media_cache: AnyPath | None = None,
    malformed: dict[int, str] | None = None,
) -> tuple[list[ManifestRow], ClipPaths]:
    """Check the rows of all splits, and unpack media that are not unpacked yet.

    Args:
        root: the data set, see `load_table`.
        columns: the data set's own name of a column by the name here.
        media_cache: folder of the unpacked media; None for the usual one.
        malformed: dict that receives the problem of each malformed row by the row's number; with None the first such
            row is an error.

    Returns:
        The rows, and what finds their files.

    Raises:
        DatasetError: if the data set cannot be opened, or has a malformed row or two rows of one id.
    """
    cache = Path(media_cache) if media_cache is not None else cache_folder("media")
    paths = _TablePaths(_folder_of(root), cache)
    rows = _rows(_open(root), columns or {}, paths, malformed)
    _check_ids(rows, malformed)
    return rows, paths


def _with_clip_of_content(sample: AVSample, row: ManifestRow) -> AVSample:
    """Name the clip by all of its files: lists of frames may begin with the same one."""
    files = [Path(path).name for path in sample.media_files] or [Path(sample.audio_path or "").name]
    return dataclasses.replace(sample, media_id=fingerprint_values([files, row.fps])[:32])


def read_table_splits(root: AnyPath, columns: Mapping[str, str] | None = None) -> set[str]:
    """Return the splits of a data set, see `load_table`; raises its errors."""
    name = (columns or {}).get("split", "split")
    return {
        split
        for of_hub, table in _open(root).items()
        for split in (
            {_split_of(record[name]) for record in _records(table, [name])} if name in table.column_names else {of_hub}
        )
    }


def read_table_columns(root: AnyPath) -> list[str]:
    """Read the names of a data set's columns.

    Raises:
        DatasetError: if it cannot be opened.
    """
    return next(iter(_open(root).values())).column_names


def read_table_categories(root: AnyPath, split: str, columns: Mapping[str, str] | None = None) -> set[str]:
    """Return the categories of a split, without reading media; raises the errors of `load_table`."""
    category, of_split = ((columns or {}).get(name, name) for name in ("category", "split"))
    found: set[str] = set()
    for of_hub, table in _open(root).items():
        names = [name for name in (category, of_split) if name in table.column_names]
        if category in names:
            records = (record for record in _records(table, names) if not is_missing(record[category]))
            found |= {str(each[category]).strip() for each in records if _split_of(each.get(of_split, of_hub)) == split}
    return found


def _split_of(value: Any) -> str:
    return DEFAULT_SPLIT if is_missing(value) else str(value).strip()


def _folder_of(root: AnyPath) -> Path:
    """Return the folder that paths in a table are relative to; of a name on the hub the library's downloads."""
    if is_hub_name(root):
        from huggingface_hub.constants import HF_HUB_CACHE

        return Path(HF_HUB_CACHE)
    path = Path(root)
    return path if path.is_dir() else path.parent


def _open(root: AnyPath) -> dict[str, Dataset]:
    """Open a data set, whose media stay bytes and paths.

    Returns:
        Its tables by the name of their split.

    Raises:
        DatasetError: if there is none, or it cannot be read.
    """
    import datasets

    path = os.fspath(root)
    try:
        if any(os.path.isfile(os.path.join(path, name)) for name in DISK_FILES):
            opened = datasets.load_from_disk(path)
        elif os.path.isfile(path):
            opened = datasets.load_dataset("parquet", data_files={DEFAULT_SPLIT: path})
        else:
            opened = datasets.load_dataset(path)
    except Exception as error:  # the library raises errors of many kinds, of files, of the network, of Arrow
        text = " ".join(str(error).split())[:400]
        raise DatasetError(
            f"datasets cannot open {path}: {text}; expected a folder of save_to_disk, Parquet files, or a repository "
            "of the hub as a folder or as organisation/name"
        ) from error
    tables = dict(opened.items()) if isinstance(opened, datasets.DatasetDict) else {_name_of(opened): opened}
    return {str(name): table for name, table in tables.items()}


def _name_of(table: Dataset) -> str:
    return DEFAULT_SPLIT if table.split is None else str(table.split)


def _records(table: Dataset, names: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield a table's rows; a medium is a dict of bytes and path, since decoding video would need torchcodec."""
    import datasets

    chosen = table if names is None else table.select_columns(list(names))
    labels = {name: kind for name, kind in chosen.features.items() if isinstance(kind, datasets.ClassLabel)}
    for batch in chosen.with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
        for record in batch.to_pylist():
            named = {name: kind.int2str(record[name]) for name, kind in labels.items() if record[name] is not None}
            yield record | named


class _TablePaths(ClipPaths):
    """Finds the files of rows whose media are unpacked into a cache, or lie beside the tables.

    Args:
        root: folder of the data set.
        cache: folder of unpacked media.
    """

    def __init__(self, root: Path, cache: Path) -> None:
        super().__init__(root)
        self.cache = cache

    def find(self, row: Row, column: str, text: str) -> Path:
        stored = STORED.fullmatch(text)
        return super().find(row, column, text) if stored is None else self.cache / stored["name"]

    def name(self, path: Path) -> str:
        return path.name if path.is_relative_to(self.cache) else super().name(path)

    def text_of(self, value: Any, column: str) -> str | None:
        """Return the text for a medium of a row: of bytes, once they are in the cache, of a file its relative path.

        Raises:
            ValueError: if the value is no medium, or names a file outside the data set's folder.
        """
        if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
            content, path = value.get("bytes"), value.get("path")
        else:
            content, path = (value, None) if isinstance(value, bytes) else (None, value)
        if isinstance(content, bytes):
            return f"{MARK}{self._unpack(content, column, path)}"
        if is_missing(path):
            return None
        if not isinstance(path, str):
            raise DatasetError(
                f"{column} is a {type(value).__name__}: expected a Video, Image, List(Image) or Audio, bytes, or a path"
            )
        return self._relative(path, column)

    def _relative(self, path: str, column: str) -> str:
        if path.startswith(MARK):
            raise UnsafePathError(f"{column} is {path[:80]!r}, which is no path: fix it")
        if not os.path.isabs(path):
            return path
        # A data set that was made of local files names them by absolute paths.
        real, root = Path(path).resolve(), self.root.resolve()
        if not real.is_relative_to(root):
            raise UnsafePathError(
                f"{column} names the file {path} outside {self.root} instead of holding it: write the data set by "
                "save_to_disk or push_to_hub, which put the media into the tables"
            )
        return real.relative_to(root).as_posix()

    def _unpack(self, content: bytes, column: str, path: Any) -> str:
        suffix = next((suffix for kind, suffix in KINDS if kind.match(content[:16])), None)
        if suffix is None:
            own = Path(path).suffix.lower() if isinstance(path, str) else ""
            suffix = own if re.fullmatch(r"\.[a-z0-9]{1,5}", own) else MEDIA[column]
        digest = fingerprint_bytes(content)[:32]
        name = f"{digest[:2]}/{digest}{suffix}"
        if not (self.cache / name).exists():
            # Whole or not at all: the launched processes write the same files at the same time.
            write_whole(self.cache / name, content, is_synced=False)
        return name


def _rows(
    tables: Mapping[str, Dataset],
    columns: Mapping[str, str],
    paths: _TablePaths,
    malformed: dict[int, str] | None,
) -> list[ManifestRow]:
    """Check the rows of all splits, and unpack their media, unless an earlier run has listed them."""
    rows: list[ManifestRow] = []
    start = 0
    for split, table in tables.items():
        identity = [table._fingerprint, sorted(columns.items()), split]
        listing = paths.cache / f"{fingerprint_values(identity)[:32]}.jsonl"
        records = _listed(listing, len(table), paths.cache)
        if records is None:
            logger.info("unpacking the media of %d rows (%s) into %s", len(table), split, paths.cache)
            records = []
            for row, record in enumerate(_records(table)):
                try:
                    records.append(_unpacked(record, split, row, columns, paths))
                except DatasetError as error:
                    if malformed is None:
                        raise
                    malformed[start + row] = str(error)
            if len(records) == len(table):
                write_whole(listing, "".join(f"{json.dumps(record)}\n" for record in records))
        rows += [read_row(record, row=start + row, place=_place(split, row)) for row, record in enumerate(records)]
        start += len(table)
    return rows


def _place(split: str, row: int) -> str:
    return f"{split} row {row}"


def _unpacked(
    record: Mapping[str, Any], split: str, row: int, columns: Mapping[str, str], paths: _TablePaths
) -> dict[str, Any]:
    """Return a row with paths in the place of its media; an error names it."""
    place = _place(split, row)
    try:
        named = rename(record, columns)
        for column in MEDIA:
            value = named.get(column)
            if isinstance(value, list):
                named[column] = [paths.text_of(each, column) for each in value] or None
            elif column in named:
                named[column] = paths.text_of(value, column)
    except UnsafePathError as error:
        raise UnsafePathError(f"{place}: {error}") from error
    except ValueError as error:
        raise DatasetError(f"{place}: {error}") from error
    named["split"] = _split_of(named["split"]) if "split" in named else split
    read_row(named, row=row, place=place)  # names what is wrong, such as a column that JSON cannot hold
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in named.items()}


def _listed(listing: Path, num_rows: int, cache: Path) -> list[dict[str, Any]] | None:
    """Return the rows that an earlier run has listed; None if it has not, or media of them are gone."""
    if not listing.is_file():
        return None
    try:
        records = [record for _, record in read_records(listing)]
    except ValueError as error:
        logger.warning("%s is damaged (%s): the media are unpacked again", listing, error)
        return None
    texts = [text for record in records for column in MEDIA for text in _texts_of(record.get(column))]
    stored = [match["name"] for text in texts if (match := STORED.fullmatch(text))]
    is_whole = len(records) == num_rows and all((cache / name).is_file() for name in dict.fromkeys(stored))
    return records if is_whole else None


def _texts_of(value: Any) -> list[str]:
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]


def _check_ids(rows: Iterable[ManifestRow], malformed: dict[int, str] | None) -> None:
    first: dict[str, ManifestRow] = {}
    for row in rows:
        other = first.setdefault(row.uid, row)
        if other is not row:
            problem = f"{row.origin}: the id {row.uid!r} is that of {other.origin}, too: give each its own"
            if malformed is None:
                raise DatasetError(problem)
            malformed[row.row] = problem
