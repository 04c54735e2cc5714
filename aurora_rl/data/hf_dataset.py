"""A benchmark as a Hugging Face dataset: parquet tables that contain the media, one row a reference.

`aurora-rl convert --to hf` writes it, `datasets.load_dataset(folder)` loads it anywhere, and `load_hf_dataset` turns
it into samples again, so that it trains and evaluates like the original folder. A row, whose media are files' bytes:

    {"uid": "--KCIeTv6PM_14000_24000_cat_1", "row": 0, "split": "val", "media_id": "--KCIeTv6PM_14000_24000",
     "category": "cat", "reference": "The object having white and gray fur.", "fps": 1.0, "chain": None, ...,
     "frames": [{"bytes": b"\\xff\\xd8...", "path": "0.jpg"}, ...], "audio": {...}, "masks": [{...}, ...]}

A mask is null where its frame is not annotated, and a row without masks has an empty list. Samples hold paths, so the
media are unpacked once into a cache folder. A file there is named by the hash of its content: rows on one clip share
their frames, and no name in a table can become a path.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Features, Image, List

from aurora_rl.data.containers import SAMPLING_RATE
from aurora_rl.data.dataset import ANNOTATION_FEATURES, ROW_FEATURES
from aurora_rl.data.files import DatasetError, UnsafePathError
from aurora_rl.data.sample import AVSample
from aurora_rl.data.splits import TABLE_FOLDER, TABLE_NAME
from aurora_rl.files.atomic import write_whole
from aurora_rl.files.fingerprint import fingerprint_bytes
from aurora_rl.files.plain import NotPlainFileError, check_plain_file, read_records

logger = logging.getLogger(__name__)

FEATURES = Features(
    {
        **ROW_FEATURES,
        "frames": List(Image()),
        "audio": Audio(sampling_rate=SAMPLING_RATE),
        "masks": List(Image()),
        **ANNOTATION_FEATURES,
    }
)
MEDIA_COLUMNS = ("frames", "audio", "masks")
OPTIONAL_COLUMNS = ("audio", *ANNOTATION_FEATURES)  # null where a row has none
#: Columns that tables of earlier versions lack; their rows have none of these values.
NEWER_COLUMNS = ("choices", "answer", "extra")
TEXT_COLUMNS = tuple(name for name in FEATURES if name not in MEDIA_COLUMNS)

#: Largest group of rows that a reader loads at once, in bytes of the file; our own tables stay far below it.
MAX_GROUP_BYTES = 2**30
ROWS_AT_ONCE = 8
#: Suffixes that an unpacked file may keep.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".wav", ".flac", ".ogg", ".mp3")


def table_name(split: str, index: int, count: int) -> str:
    """Return the file name of one of a split's tables, in the hub's form."""
    return f"{split}-{index:05d}-of-{count:05d}.parquet"


def load_hf_dataset(root: str | os.PathLike[str], split: str, *, media_cache: str | os.PathLike[str]) -> list[AVSample]:
    """List the samples of one split, and unpack media that are not unpacked yet.

    Args:
        root: folder that `aurora-rl convert --to hf` has written, which holds data/.
        split: name of the split.
        media_cache: folder for the media, which splits and datasets may share.

    Returns:
        The samples in the tables' order.

    Raises:
        DatasetError: if the split or one of its tables is missing, or a table is damaged, of other columns, lies
            outside the root, or holds a row without a value or without its media.
    """
    paths = _find_tables(Path(root), split)
    return [sample for path in paths for sample in _samples_of(path, Path(media_cache))]


def read_categories(root: str | os.PathLike[str], split: str) -> set[str]:
    """Read the categories in a split's tables without their media; raises the errors of `load_hf_dataset`."""
    rows = (row for path in _find_tables(Path(root), split) for row in _read_rows(path, ["category"]))
    return {row["category"] for row in rows if row["category"]}


def _find_tables(root: Path, split: str) -> list[Path]:
    folder = root / TABLE_FOLDER
    if not folder.is_dir():
        raise DatasetError(f"there is no {folder}: root must be a folder that `aurora-rl convert --to hf` has written")
    tables = {path: match for path in sorted(folder.iterdir()) if (match := TABLE_NAME.fullmatch(path.name))}
    ours = {path: match for path, match in tables.items() if match["split"] == split}
    if not ours:
        found = sorted({match["split"] for match in tables.values()})
        raise DatasetError(f"{folder} has no split {split!r}: expected one of {found}")
    count = int(next(iter(ours.values()))["count"])
    expected = {table_name(split, index, count) for index in range(count)}
    if {path.name for path in ours} != expected:
        wrong = sorted({path.name for path in ours} ^ expected)
        raise DatasetError(f"the tables of split {split!r} in {folder} are not complete ({wrong[:3]}): get them again")
    for path in ours:
        try:
            check_plain_file(path)
        except NotPlainFileError as error:
            raise DatasetError(str(error)) from error
        if not path.resolve().is_relative_to(root.resolve()):
            raise UnsafePathError(f"{path} is a link to {path.resolve()} outside {root.resolve()}: copy the file in")
    return list(ours)


def _samples_of(path: Path, cache: Path) -> list[AVSample]:
    """Return the samples of a table, from the list written when its media were unpacked if all media are there."""
    status = path.stat()
    identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {TEXT_COLUMNS}"
    listing = cache / f"{fingerprint_bytes(identity.encode())[:32]}.jsonl"
    if listing.is_file():
        try:
            records = [record for _, record in read_records(listing)]
            files = {name for record in records for name in (*record["frames"], *record["masks"], record["audio"])}
            if all((cache / name).is_file() for name in files if name):
                return [_to_sample(record, cache) for record in records]
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s is damaged (%s): the media are unpacked again", listing, error)
    logger.info("unpacking the media of %s into %s", path, cache)
    records = [_unpack(row, cache, origin=f"{path.name}:{number}") for number, row in enumerate(_read_rows(path))]
    write_whole(listing, "\n".join(json.dumps(record) for record in records))
    return [_to_sample(record, cache) for record in records]


def _to_sample(record: Mapping[str, Any], cache: Path) -> AVSample:
    """Make the sample of a listed row, whose files are named relative to the cache's folder."""
    texts: dict[str, Any] = {
        name: tuple(value) if isinstance(value := record[name], list) else value for name in TEXT_COLUMNS
    }
    return AVSample(
        **texts,
        frame_paths=tuple(str(cache / name) for name in record["frames"]),
        audio_path=record["audio"] and str(cache / record["audio"]),
        mask_paths=tuple(name and str(cache / name) for name in record["masks"]),
        origin=record["origin"],
    )


def _read_rows(path: Path, columns: Sequence[str] = tuple(FEATURES)) -> Iterator[dict[str, Any]]:
    """Yield columns of a table's rows, a few rows at a time; a row's media are bytes."""
    try:
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            missing = [name for name in FEATURES if name not in there and name not in NEWER_COLUMNS]
            if missing:
                raise DatasetError(f"{path} lacks the column(s) {missing}: make it by `aurora-rl convert --to hf`")
            found = [name for name in columns if name in there]
            schema = pa.schema([FEATURES.arrow_schema.field(name) for name in found])
            for group in range(file.num_row_groups):
                num_bytes = file.metadata.row_group(group).total_byte_size
                if num_bytes > MAX_GROUP_BYTES:
                    raise DatasetError(
                        f"{path} has a row group of {num_bytes} bytes: the limit is {MAX_GROUP_BYTES}, write it in "
                        "smaller ones"
                    )
                for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=found):
                    rows = pa.Table.from_batches([batch]).select(found).cast(schema).to_pylist()
                    yield from (dict.fromkeys(columns) | row for row in rows)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"cannot read {path}: {error}; get the file again") from error


def _unpack(row: Mapping[str, Any], cache: Path, *, origin: str) -> dict[str, Any]:
    """Write a row's media to files and return the row with their names relative to the cache's folder."""
    place = f"clip {row['uid']!r} (row {row['row']}, {origin})"
    empty = [name for name in FEATURES if row[name] is None and name not in OPTIONAL_COLUMNS]
    if empty:
        raise DatasetError(f"{place} has no value for {empty}: fix or drop the row")
    if not 0 < row["fps"] < math.inf:
        raise DatasetError(f"{place} has fps {row['fps']}: expected a positive number of frames a second")
    return {
        **{name: row[name] for name in TEXT_COLUMNS},
        "frames": [_store(media, cache, place=place) for media in row["frames"]],
        "audio": None if row["audio"] is None else _store(row["audio"], cache, place=place),
        "masks": ["" if media is None else _store(media, cache, place=place) for media in row["masks"]],
        "origin": origin,
    }


def _store(media: Mapping[str, Any] | None, cache: Path, *, place: str) -> str:
    """Write a medium to a file unless it exists, and return the name relative to the cache's folder."""
    if media is None or media["bytes"] is None:
        raise DatasetError(
            f"{place} names the file {media and media['path']!r} instead of holding it: only media inside the table "
            "are read, write it by `aurora-rl convert --to hf`"
        )
    digest = fingerprint_bytes(media["bytes"])[:32]
    suffix = Path(media["path"] or "").suffix.lower()
    name = f"{digest[:2]}/{digest}{suffix if suffix in SUFFIXES else ''}"
    if not (cache / name).exists():
        # Whole or not at all: the launched processes write the same files at the same time.
        write_whole(cache / name, media["bytes"], is_synced=False)
    return name
