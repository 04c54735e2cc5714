"""The splits of a benchmark's folder, read from its tables and file names before any sample is listed.

Neither media nor the libraries of `hf_dataset` are loaded, so that a misspelt split is an error within a second.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from aurora_rl.data.avsbench import AVSS_TABLE, MS3_TABLE, S4_TABLE
from aurora_rl.data.clip_sources import is_table
from aurora_rl.data.files import DatasetError, read_table
from aurora_rl.data.manifest import read_splits as read_manifest_splits
from aurora_rl.data.question_tables import QUESTION_TABLES, list_question_splits
from aurora_rl.data.questions import QUESTIONS_FILE, read_questions
from aurora_rl.data.ref_avs import table_path
from aurora_rl.files.existing import entries

#: Folder and names of the tables that `aurora-rl convert --to hf` writes.
TABLE_FOLDER = "data"
TABLE_NAME = re.compile(r"(?P<split>\w+(?:\.\w+)*)-(?P<index>\d{5})-of-(?P<count>\d{5})\.parquet")
OMNI_AVS_TABLE = re.compile(r"meta_expressions_(?P<split>.+)\.jsonl")


def list_splits(benchmark: str, root: str | Path, columns: Mapping[str, str] | None = None) -> list[str]:
    """List the names of a benchmark's splits, sorted.

    Args:
        benchmark: a key of `SPLIT_READERS`.
        root: the benchmark's folder, or a manifest.
        columns: a manifest's own names of columns by the usual ones.

    Raises:
        DatasetError: if the table that names them is missing or cannot be read.
    """
    if benchmark == "clips" and is_table(root):
        from aurora_rl.data.clip_tables import read_table_splits  # takes seconds, and no other benchmark needs it

        return sorted(read_table_splits(root, columns))
    if benchmark == "clips":
        return sorted(read_manifest_splits(root, columns))
    return sorted(SPLIT_READERS[benchmark](Path(root)))


def splits_of_table(root: Path, *, file: str) -> set[str]:
    """Return the splits that the rows of a benchmark's table name in its column `split`.

    Raises:
        DatasetError: if the table is missing, cannot be read, or has no such column.
    """
    rows = read_table(
        root / file,
        ("split",),
        header="the names of the columns, `split` among them",
        layout=f"{file} and the media that it names",
        malformed={},  # the loader names such rows, which may be in another split
    )
    return {row["split"] for row in rows if row["split"]}


def _read_from_names(folder: Path, *, pattern: re.Pattern[str], example: str) -> set[str]:
    if not folder.is_dir():
        raise DatasetError(f"there is no {folder}: expected a folder with files such as {example}")
    splits = {match["split"] for path in folder.iterdir() if (match := pattern.fullmatch(path.name))}
    if not splits:
        raise DatasetError(f"{folder} holds no file such as {example}: it holds {entries(folder)}")
    return splits


SPLIT_READERS: dict[str, Callable[[Path], set[str]]] = {
    "ref_avs": lambda root: splits_of_table(table_path(root).parent, file=table_path(root).name),
    "avsbench_s4": functools.partial(splits_of_table, file=S4_TABLE),
    "avsbench_ms3": functools.partial(splits_of_table, file=MS3_TABLE),
    "avsbench_avss": functools.partial(splits_of_table, file=AVSS_TABLE),
    **dict.fromkeys(
        ("omni_avs", "omni_avs_all"),
        functools.partial(_read_from_names, pattern=OMNI_AVS_TABLE, example="meta_expressions_test.jsonl"),
    ),
    "hf_dataset": lambda root: _read_from_names(
        root / TABLE_FOLDER, pattern=TABLE_NAME, example="train-00000-of-00001.parquet"
    ),
    "clips": read_manifest_splits,
    "questions": lambda root: {row.split for row in read_questions(root / QUESTIONS_FILE)},
    **{name: functools.partial(list_question_splits, name) for name in QUESTION_TABLES},
}
