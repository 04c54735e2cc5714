"""The forms in which own clips come, told apart by names of files: a manifest, or a data set of `datasets`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from aurora_rl.files.existing import AnyPath

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
#: Files by which `save_to_disk` marks its folders.
DISK_FILES = ("dataset_dict.json", "state.json")
MANIFESTS = (".jsonl", ".ndjson", ".csv")


def is_hub_name(root: AnyPath) -> bool:
    """Tell whether a data set is named by organisation and name on the hub, by the form and by what is on disk.

    >>> is_hub_name("someone/clips"), is_hub_name("./clips"), is_hub_name("someone/clips.csv")
    (True, False, False)
    """
    text = os.fspath(root)
    if HUB_NAME.fullmatch(text) is None or text.lower().endswith((*MANIFESTS, ".parquet", ".json")):
        return False
    return not os.path.lexists(text) and not os.path.isdir(os.path.dirname(text))  # else a folder is misspelt


def is_table(root: AnyPath) -> bool:
    """Tell whether `data_root` of own clips is a data set of `datasets`, not a manifest.

    A Parquet file that holds no media is a manifest.
    """
    path = Path(root)
    if not path.is_dir():
        return is_hub_name(root) or (path.suffix == ".parquet" and path.is_file() and _holds_media(path))
    if any((path / name).is_file() for name in DISK_FILES):
        return True
    names = [file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")]
    if any(file.suffix.lower() in MANIFESTS for file in names):
        return False
    tables = [file for file in path.rglob("*.parquet") if file.is_file()]
    return len(tables) > 1 or any(file.parent != path or _holds_media(file) for file in tables)


def _holds_media(path: Path) -> bool:
    import pyarrow as pa  # takes long, and manifests do not need it
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError):
        return False  # the reader of manifests says what is wrong
    types = [
        kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind for kind in schema.types
    ]
    return any(pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) for kind in types)
