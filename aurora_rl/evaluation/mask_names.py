"""Which rows a saved prediction is of: its name is a row's number, a row's id, or a clip.

A benchmark's rows are known by number, id and clip (`KnownRow`). An id may have several rows, as in Ref-AVSBench, and a
clip usually has: plain masks fit only if these rows ask the same; a COCO file names its masks by the references, and a
palette holds an object id for each object.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from aurora_rl.evaluation.coco_masks import CocoClip, CocoFile, Key, find_category
from aurora_rl.evaluation.mask_files import OBJECTS_FILE, ROW_NUMBER, PredictionFile
from aurora_rl.evaluation.predictions import BadPrediction, Prediction, PredictionError, add_prediction
from aurora_rl.files.plain import parse_json, read_text_file

logger = logging.getLogger(__name__)

KeyedBy = Literal["auto", "row", "id"]
KEYED_BY: tuple[KeyedBy, ...] = ("auto", "row", "id")
NUM_SHOWN = 5  # largest number of rows or files in a message


@dataclasses.dataclass(frozen=True)
class KnownRow:
    """A row of the benchmark's table, of whatever split.

    Attributes:
        row: number of the row.
        uid: id of the row.
        clip: id of its clip.
        reference: reference, or question.
        category: category of the object.
        target: what tells its true object from others of the clip.
        alias: another name of the clip, such as its video's without folder and suffix; counts where it is one clip's.
        object_id: number of the object in a palette, as far as the row's id tells it.
    """

    row: int
    uid: str
    clip: str
    reference: str
    category: str
    target: Hashable
    alias: str = ""
    object_id: int | None = None

    @property
    def question(self) -> Hashable:
        """What rows that may share one prediction have in common."""
        return self.reference, self.target


class RowNames:
    """Finds the rows that names mean.

    Args:
        known: rows of the benchmark.
        keyed_by: `row` or `id`, if all names are of one kind; `auto` finds out.
        objects: rows of a clip's object ids, by clip (`read_objects`).
    """

    def __init__(
        self,
        known: Iterable[KnownRow],
        *,
        keyed_by: KeyedBy = "auto",
        objects: Mapping[str, Mapping[int, Sequence[Key]]] | None = None,
    ) -> None:
        self.keyed_by, self.objects = keyed_by, objects or {}
        self._rows: dict[int, KnownRow] = {}
        self._ids: dict[str, list[KnownRow]] = {}
        self._clips: dict[str, list[KnownRow]] = {}
        for row in known:
            self._rows[row.row] = row
            self._ids.setdefault(row.uid, []).append(row)
            self._clips.setdefault(row.clip, []).append(row)
        self._clips = self._by_alias() | self._clips
        self.unknown: list[str] = []
        self.counted: set[str] = set()  # clips whose objects are counted in the table's order
        self._check_objects()

    def _by_alias(self) -> dict[str, list[KnownRow]]:
        """Return the rows of each alias that is the name of one clip alone."""
        clips: dict[str, set[str]] = {}
        for row in self._rows.values():
            clips.setdefault(row.alias, set()).add(row.clip)
        return {alias: self._clips[next(iter(named))] for alias, named in clips.items() if alias and len(named) == 1}

    def rows_of(self, named: Iterable[tuple[Key, Prediction]]) -> dict[int, Prediction]:
        """Return the predictions by row; names that mean no row are added to `unknown`.

        Raises:
            PredictionError: if a name means a row by its number and another one by its id.
        """
        rows: dict[int, Prediction] = {}
        for name, prediction in named:
            number = name if isinstance(name, int) else self._number(str(name))
            if number is not None:
                add_prediction(rows, number, prediction)  # also of a row that nobody knows
                continue
            ids, clip = self._ids.get(str(name), []), self._clips.get(str(name), [])
            if not ids and not clip:
                self.unknown.append(str(name))
                continue
            for row, own in _shared(str(name), ids, prediction) if ids else self._of_clip(str(name), clip, prediction):
                add_prediction(rows, row, own)
        return rows

    def _number(self, name: str) -> int | None:
        """Return the number of the row that a name is; None if it is an id or a clip."""
        if self.keyed_by == "id" or not ROW_NUMBER.fullmatch(name):
            return None
        number = int(name)
        if self.keyed_by == "row":
            return number
        meant = self._ids.get(name) or self._clips.get(name) or []
        if meant and {row.row for row in meant} != {number}:
            if number not in self._rows:
                return None
            raise PredictionError(
                f"{name!r} is the number of row {number} ({self._rows[number].uid}), and the id or clip of row "
                f"{meant[0].row}: say which by --keyed_by row or --keyed_by id"
            )
        return number

    def _of_clip(self, clip: str, rows: Sequence[KnownRow], prediction: Prediction) -> list[tuple[int, Prediction]]:
        """Return a clip's rows with their part of a prediction."""
        palette = isinstance(prediction, PredictionFile) and not prediction.path.endswith(".npz")
        if clip in self.objects and isinstance(prediction, PredictionFile) and palette:
            return [
                (row.row, dataclasses.replace(prediction, objects=ids))
                for row in rows
                if (ids := tuple(self._objects_of(clip, row)))
            ]
        targets = list(dict.fromkeys(row.target for row in rows))
        if palette and isinstance(prediction, PredictionFile) and len(targets) > 1:
            is_told = all(row.object_id for row in rows)
            if not is_told:
                self.counted.add(clip)
            numbers = [row.object_id if is_told else targets.index(row.target) + 1 for row in rows]
            parts = [dataclasses.replace(prediction, objects=(number or 0,)) for number in numbers]
            return list(zip([row.row for row in rows], parts, strict=True))
        return _shared(clip, rows, prediction)

    def _check_objects(self) -> None:
        """Refuse a file of objects that names a row which its clip does not have."""
        for clip, objects in self.objects.items():
            own = {name for row in self._clips.get(clip, ()) for name in (row.row, row.uid, str(row.row))}
            for number, rows in objects.items():
                if strange := [name for name in rows if name not in own]:
                    raise PredictionError(
                        f"{OBJECTS_FILE} has {strange[0]!r} as object {number} of {clip!r}, which has no such row: its "
                        f"rows are {some([row.uid for row in self._clips.get(clip, ())]) or 'none'}"
                    )

    def _objects_of(self, clip: str, row: KnownRow) -> list[int]:
        """Return the object ids that are a row's, by the file of objects."""
        names: tuple[Key, ...] = (row.row, row.uid, str(row.row))
        return [number for number, rows in self.objects[clip].items() if any(name in names for name in rows)]


def _shared(name: str, rows: Sequence[KnownRow], prediction: Prediction) -> list[tuple[int, Prediction]]:
    """Return some rows with the prediction that they share.

    Of COCO masks, rows whose reference has no category are left out. Other masks of rows that ask different things are
    a problem of each.
    """
    if len({row.question for row in rows}) == 1:
        return [(row.row, prediction) for row in rows]
    if isinstance(prediction, CocoFile | CocoClip):
        try:
            if categories := prediction.categories:
                return _with_category(rows, prediction, categories)
        except PredictionError as error:
            bad = BadPrediction(prediction.path, prediction.fingerprint, str(error))
            return [(row.row, bad) for row in rows]
    first, other = rows[0], next(row for row in rows if row.question != rows[0].question)
    problem = (
        f"{prediction.path} is named {name!r}, which are rows {first.row} ({first.reference!r}) and {other.row} "
        f"({other.reference!r}): name masks by the row's number, or give a COCO file with a category for each reference"
    )
    return [(row.row, BadPrediction(prediction.path, prediction.fingerprint, problem)) for row in rows]


def _with_category(
    rows: Sequence[KnownRow], prediction: CocoFile | CocoClip, categories: Mapping[Any, str]
) -> list[tuple[int, Prediction]]:
    """Return the rows whose reference is among the categories; an error if none is."""
    shared = dataclasses.replace(prediction, is_shared=True)
    found = [row for row in rows if find_category(categories, row.reference, row.category) is not None]
    if not found:
        raise PredictionError(
            f"{prediction.path} has the categories {some([repr(name) for name in categories.values()])}, but the "
            f"references of its rows are {some([repr(row.reference) for row in rows])}: name them alike"
        )
    return [(row.row, shared) for row in found]


def read_objects(folder: Path) -> dict[str, dict[int, tuple[Key, ...]]]:
    """Read `objects.json` of a folder of palettes: the rows of each clip's object ids; empty if there is none.

    Raises:
        PredictionError: if the file is invalid; the error names it and the clip.
    """
    path = folder / OBJECTS_FILE
    if not path.exists():
        return {}
    try:
        content = parse_json(read_text_file(path))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        return {clip: _read_clip_objects(clip, objects) for clip, objects in content.items()}
    except (OSError, ValueError) as error:
        raise PredictionError(
            f'cannot read {path}: {error}; expected {{"<clip>": {{"1": "<id or row>", "2": ["<id>", 7]}}}}'
        ) from error


def _read_clip_objects(clip: str, objects: Any) -> dict[int, tuple[Key, ...]]:
    if not isinstance(objects, dict):
        raise ValueError(f"{clip!r} has a {type(objects).__name__}")
    found: dict[int, tuple[Key, ...]] = {}
    for number, rows in objects.items():
        names = rows if isinstance(rows, list) else [rows]
        if not ROW_NUMBER.fullmatch(number) or not 0 < int(number) < 256:
            raise ValueError(f"{clip!r} has the object id {number!r}, expected 1 to 255")
        if not names or not all(type(name) in (int, str) for name in names):
            raise ValueError(f"{clip!r} has {rows!r} for object {number}")
        found[int(number)] = tuple(names)
    return found


def some(names: Sequence[str]) -> str:
    """Return the first few names as text, and how many more there are."""
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return f"{', '.join(names[:NUM_SHOWN])}{more}"
