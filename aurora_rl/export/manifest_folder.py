"""Samples of any benchmark as a manifest of own clips: manifest.jsonl, and the files that it names beside it.

`benchmark: clips` reads the folder; every frame, sound and mask is the benchmark's own file, byte for byte.
"""

from __future__ import annotations

import collections
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.data.containers import check_is_file
from aurora_rl.data.files import DatasetError
from aurora_rl.data.manifest_rows import EMPTY_MASKS
from aurora_rl.data.media import load_clip
from aurora_rl.data.omni_references import check_words_alone
from aurora_rl.data.sample import AVSample
from aurora_rl.files.atomic import whole_folder, write_whole
from aurora_rl.files.fingerprint import fingerprint_values

logger = logging.getLogger(__name__)

MANIFEST = "manifest.jsonl"
#: Fields of a sample that are columns of a manifest.
COLUMNS = ("reference", "category", "split", "fps", "reference_type", "chain", "seen", "heard", "choices", "answer")


def write_manifest(samples: Sequence[AVSample], folder: Path, *, root: Path, links: bool = False) -> int:
    """Write a manifest and the files of its rows into a folder, whole or not at all.

    Args:
        samples: rows, in the order of the manifest.
        folder: folder that is made; or `root` itself, where only the manifest is written and nothing is copied.
        root: folder of the benchmark. Its files keep their places.
        links: whether files are hard links where the disk allows it, instead of copies.

    Returns:
        The number of files that were copied or linked.

    Raises:
        DatasetError: if the folder exists already, the manifest names a file outside it, or a reference has files of
            its own.
        MediaError: if a clip cannot be read.
    """
    check_words_alone(samples, "a manifest")
    if folder.exists() and folder.resolve() == root.resolve():
        return _write_in_place(samples, folder, root)
    if folder.exists():
        raise DatasetError(f"{folder} is there already: name another folder, or delete it")
    with whole_folder(folder) as whole:
        if folder.exists():  # made by another run meanwhile
            raise DatasetError(f"{folder} is there already: name another folder, or delete it")
        places = _places(samples, root)
        _check_space(places, folder)
        records = _records(samples, places)
        for source, place in places.items():
            _put(Path(source), whole / place, links=links)
        (whole / MANIFEST).write_text(_lines(records), encoding="utf-8")
    return len(places)


def _write_in_place(samples: Sequence[AVSample], folder: Path, root: Path) -> int:
    places = _places(samples, root)
    outside = next((source for source, place in places.items() if not (root / place).exists()), None)
    if outside is not None:
        raise DatasetError(f"{outside} lies outside {root}: name another folder, into which all files are copied")
    if (folder / MANIFEST).exists():
        raise DatasetError(f"{folder / MANIFEST} is there already: delete it, or name another folder")
    write_whole(folder / MANIFEST, _lines(_records(samples, places)))
    return 0


def _lines(records: Sequence[Mapping[str, Any]]) -> str:
    return "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)


def _files_of(sample: AVSample) -> list[str]:
    return [path for path in (*sample.media_files, *sample.mask_paths, sample.audio_path) if path]


def _places(samples: Sequence[AVSample], root: Path) -> dict[str, str]:
    """Return for each file its place in the folder: the one in the benchmark, or of others one by their path."""
    places: dict[str, str] = {}
    real = root.resolve()
    for path in dict.fromkeys(path for sample in samples for path in _files_of(sample)):
        check_is_file(path)
        own = Path(path)
        inside = own.parent.resolve() / own.name
        if inside.is_relative_to(real) and not own.is_symlink():
            places[path] = inside.relative_to(real).as_posix()
        else:  # such as masks, which are cached elsewhere under names of their content
            places[path] = f"files/{fingerprint_values([str(inside.parent)])[:8]}/{own.name}"
    return places


def _records(samples: Sequence[AVSample], places: Mapping[str, str]) -> list[dict[str, Any]]:
    counts = collections.Counter(sample.uid for sample in samples)
    read: set[tuple[Any, ...]] = set()
    records = []
    for sample in samples:
        files = (*sample.media_files, *sample.mask_paths, sample.audio_path)
        if files not in read:
            load_clip(sample)  # finds files that cannot be read, and masks that do not fit, now
            read.add(files)
        records.append(_record(sample, places, is_unique=counts[sample.uid] == 1))
    ids = collections.Counter(record["id"] for record in records)
    if twice := [name for name, count in ids.items() if count > 1]:
        raise DatasetError(f"two rows have the id {twice[0]!r}: name splits whose rows do not repeat")
    return records


def _record(sample: AVSample, places: Mapping[str, str], *, is_unique: bool) -> dict[str, Any]:
    record: dict[str, Any] = {"id": sample.uid if is_unique else sample.key}
    if sample.video_path is not None:
        record["video"] = places[sample.video_path]
    elif sample.frame_paths:
        record["frames"] = [places[path] for path in sample.frame_paths]
    if sample.audio_path is not None and sample.audio_path != sample.video_path:
        record["audio"] = places[sample.audio_path]
    if any(sample.mask_paths):
        record["masks"] = [places[path] if path else None for path in sample.mask_paths]
    elif sample.has_gt_masks:  # a reference to nothing
        record["masks"] = EMPTY_MASKS
    fields = {name: getattr(sample, name) for name in COLUMNS}
    known = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    return record | {name: value for name, value in known.items() if value not in (None, "")} | sample.extra_columns


def _check_space(places: Mapping[str, str], folder: Path) -> None:
    needed = sum(os.path.getsize(path) for path in places)
    existing = next(parent for parent in folder.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(existing).free
    logger.info("%d files take %.3g GB, %.3g GB are free", len(places), needed / 1e9, free / 1e9)
    if needed > free:
        raise DatasetError(
            f"{len(places)} files take {needed / 1e9:.3g} GB, but {existing} has {free / 1e9:.3g} GB free: free some, "
            "or write the manifest into the benchmark's own folder, which copies nothing"
        )


def _put(source: Path, target: Path, *, links: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if links:
        try:
            os.link(source.resolve(), target)
        except OSError:  # another disk, or one that knows no links
            shutil.copyfile(source, target)
    else:
        shutil.copyfile(source, target)
