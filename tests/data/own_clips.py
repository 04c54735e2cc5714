"""Own clips for tests: short films in a folder, a manifest of any kind, masks of any form."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aurora_rl.data.run_lengths import encode_masks
from tests.data.odd_files import grey, tone, write_film

HEIGHT, WIDTH = 32, 48
#: Pictures of a film of 2 s at 10 a second, each with its own level of grey.
PICTURES = [grey(10 * number, HEIGHT, WIDTH) for number in range(20)]
ROW = {"video": "clips/a.mp4", "reference": "the thing"}


def write_clips(root: Path) -> Path:
    """Write a film with sound, one without, one that is rotated, a still one, and one of a varying frame rate."""
    clips = root / "clips"
    clips.mkdir(parents=True)
    write_film(clips / "a.mp4", frames=PICTURES, sounds=[[(0.0, tone(2))]])
    write_film(clips / "silent.mp4", frames=PICTURES)
    write_film(clips / "rotated.mp4", frames=PICTURES, matrix=(0, 1, -1, 0))
    write_film(clips / "still.mp4", frames=PICTURES[:1])
    write_film(clips / "varying.mkv", frames=PICTURES[:5], times=[0, 0.1, 0.9, 2.5, 2.6])
    return root


def link_clips(clips: Path, root: Path) -> Path:
    """Link the films into a folder of a test's own."""
    (root / "clips").mkdir(parents=True)
    for path in (clips / "clips").iterdir():
        os.link(path, root / "clips" / path.name)
    return root


def write_manifest(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as the file's suffix says."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            out = csv.DictWriter(file, names, restval="")
            out.writeheader()
            out.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows]), path)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def column(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A mask that marks one column of pixels, so that it can be told from others."""
    mask = np.zeros((height, width), dtype=bool)
    mask[:, number] = True
    return mask


def coco(
    masks: Mapping[Any, np.ndarray | None], *, key: str = "time", categories: Sequence[str] = ("thing",), used: int = 0
) -> dict[str, Any]:
    """A COCO file: an image for each time (or frame_index, or file_name), an annotation for each mask."""
    annotations = [
        {"id": n, "image_id": n, "category_id": used, "segmentation": encode_masks(mask[None])[0]}
        for n, mask in enumerate(masks.values())
        if mask is not None
    ]
    return {
        "images": [{"id": n, key: place} for n, place in enumerate(masks)],
        "annotations": annotations,
        "categories": [{"id": n, "name": name} for n, name in enumerate(categories)],
    }
