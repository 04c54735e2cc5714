"""The rows that saved masks are scored against, of whatever benchmark.

Of Ref-AVSBench's layout the table and the true masks are enough; the other loaders read their whole folder.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.data.ref_avs import MetadataRow, find_test_splits, load_ref_avs_truth, read_metadata, table_path
from aurora_rl.data.sample import AVSample
from aurora_rl.evaluation.mask_names import KnownRow
from aurora_rl.files.fingerprint import fingerprint_bytes, fingerprint_content
from aurora_rl.tasks.reference_segmentation import chain_file


@dataclasses.dataclass(frozen=True)
class Truth:
    """Rows with their true masks.

    Attributes:
        samples: rows to score, in the order of the splits.
        known: rows of the table, as far as it is read: all of Ref-AVSBench's, the scored splits' of others.
        table: name of the table, for errors.
        is_whole: whether `known` holds every row of the table.
        train_categories: categories of the training split, which tell new ones from seen ones.
        fingerprint: hash that changes if the rows change.
    """

    samples: tuple[AVSample, ...]
    known: tuple[KnownRow, ...]
    table: str
    is_whole: bool
    train_categories: frozenset[str]
    fingerprint: str


def load_truth(data: DataArguments, splits: Sequence[str]) -> Truth:
    """Load the rows of some splits.

    Args:
        data: arguments of the benchmark.
        splits: names of the splits; all whose name begins with "test" if there are none.

    Raises:
        ValueError: if the benchmark is unknown or its files are invalid.
    """
    return _of_ref_avs(data, splits) if data.benchmark == "ref_avs" else _of_benchmark(data, splits)


def _of_ref_avs(data: DataArguments, splits: Sequence[str]) -> Truth:
    path = table_path(data.data_root)
    table = read_metadata(path)
    splits = list(dict.fromkeys(splits or find_test_splits(path)))
    chains = None if data.chains is None else chain_file(path.parent / data.chains)
    samples = load_ref_avs_truth(path, splits, chains=chains)
    return Truth(
        samples=tuple(dataclasses.replace(sample, fps=data.fps) for sample in samples),
        known=tuple(map(_known_row, table)),
        table=path.name,
        is_whole=True,
        train_categories=frozenset(row.category for row in table if row.split == data.train_split and not row.is_null),
        fingerprint=fingerprint_content(path),
    )


def _known_row(row: MetadataRow) -> KnownRow:
    # A null reference has no object: two of them on one clip are two questions.
    target = ("null", row.reference) if row.is_null else ("object", row.fid)
    return KnownRow(row.row, row.uid, row.media_id, row.reference, row.category, target)


def _of_benchmark(data: DataArguments, splits: Sequence[str]) -> Truth:
    from aurora_rl.assembly.benchmarks import find_train_categories, list_test_splits, load_split  # slow: `datasets`

    splits = list(dict.fromkeys(splits or list_test_splits(data)))
    samples = [sample for split in splits for sample in load_split(data, split)]
    return Truth(
        samples=tuple(samples),
        known=tuple(map(_known_sample, samples)),
        table=f"{', '.join(splits)} of {data.data_root}",
        is_whole=False,
        train_categories=frozenset(find_train_categories(data)),
        fingerprint=fingerprint_bytes(repr(samples).encode()),
    )


def _known_sample(sample: AVSample) -> KnownRow:
    target = ("null", sample.reference) if sample.is_null else ("object", sample.mask_paths)
    alias = _clip_name(sample)
    return KnownRow(
        sample.row, sample.uid, sample.media_id, sample.reference, sample.category, target, alias, _object_of(sample)
    )


def _clip_name(sample: AVSample) -> str:
    """Return what people call the clip: its video without folder and suffix, or the folder of its frames."""
    if sample.video_path is not None:
        return Path(sample.video_path).stem
    folders = {Path(path).parent.name for path in sample.frame_paths}
    return next(iter(folders)) if len(folders) == 1 else ""


def _object_of(sample: AVSample) -> int | None:
    """Return the object's number in the id of a row that `aurora-rl convert --from davis` has written, `<clip>_<n>`."""
    number = re.fullmatch(rf"{re.escape(_clip_name(sample))}_([1-9]\d{{0,2}})(#\d+)?", sample.uid)
    return int(number[1]) if number and sample.media_id != _clip_name(sample) else None
