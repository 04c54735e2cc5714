"""One row of a manifest of own clips: a record of texts, lists and numbers becomes a checked `ManifestRow`.

    {"id": "kitchen-1", "video": "clips/kitchen.mp4", "audio": "clips/kitchen.wav", "category": "kettle",
     "reference": "the kettle that whistles", "masks": "masks/kitchen-1.json", "split": "train", "fps": 1.0}

This is pure: no file is opened. `clip_files.ClipBuilder` finds a row's files and makes its `AVSample`. A record may
come from any table: values that are missing, null, "" or NaN are the same, and lists may be written as JSON in a text,
as a CSV file needs it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

from aurora_rl.data.files import DatasetError, Row
from aurora_rl.data.questions import MAX_CHOICES
from aurora_rl.data.sample import NULL_CATEGORY
from aurora_rl.files.plain import parse_json

#: The value of `masks` of a null reference.
EMPTY_MASKS = "empty"
DEFAULT_SPLIT = "train"
#: Columns with a meaning here, in the order of the docs; all others are handed to reward functions.
ROW_COLUMNS = (
    *("id", "video", "frames", "audio", "reference", "masks", "masks_category", "category", "split", "fps"),
    *("chain", "choices", "answer", "seen", "heard", "reference_type"),
)
TEXT_COLUMNS = ("video", "audio", "masks_category", "category", "split", "chain", "answer", "reference_type")
COLUMNS_THAT_MAY_SAY_NULL = ("video", "frames", "audio", "masks", "fps", "chain")
LIST_COLUMNS = ("choices", "seen", "heard")
#: Names that reward functions know otherwise, so that a further column of this name would not reach them.
TAKEN_NAMES = frozenset(
    {
        *("prompt", "prompts", "completion", "completions", "completion_ids"),
        *("uid", "row", "media_id", "origin", "wrong", "use_audio_in_video", "extra", "dataset"),
        *("frame_paths", "audio_path", "mask_paths", "video_path", "frame_times", "sampled_fps", "frame_cache"),
        "reference_media",
        *("pred_masks", "mask_probs", "gt_masks", "mask_counts", "head_score", "loudness_dbfs", "sample", "answers"),
        *("pred_boxes", "trainer_state", "log_metric", "log_extra", "environments", "images", "tools"),
    }
)
MAX_FPS = 240.0


@dataclasses.dataclass(frozen=True)
class ManifestRow(Row):
    """One checked row; `uid` is its id, and `category` is "" where it is not known.

    Attributes:
        video: path of a video file; None where there are `frames`, or a sound alone.
        frames: paths of pictures in time order, or one path of their folder; None for a video.
        audio: path of a sound file; None for the video's own sound, or for no sound.
        masks: path of masks (COCO JSON, npz, PNG, folder), or a list of PNG files with None for a frame that is not
            annotated; `EMPTY_MASKS` for a null reference; None where the truth is not known.
        masks_category: name of the category in a COCO file.
        fps: frames a second that are sampled of a video, or that given frames have; None for the run's.
        extra: further columns as a JSON object; None where there are none.
    """

    video: str | None = None
    frames: str | tuple[str, ...] | None = None
    audio: str | None = None
    masks: str | tuple[str | None, ...] | None = None
    masks_category: str | None = None
    fps: float | None = None
    chain: str | None = None
    choices: tuple[str, ...] | None = None
    answer: str | None = None
    seen: tuple[str, ...] | None = None
    heard: tuple[str, ...] | None = None
    reference_type: str | None = None
    extra: str | None = None

    @property
    def is_null(self) -> bool:
        """Whether the reference points at nothing."""
        return self.category == NULL_CATEGORY


def read_row(
    record: Mapping[str, Any], *, row: int, place: str, columns: Mapping[str, str] | None = None
) -> ManifestRow:
    """Check a record and return its row.

    Args:
        record: value by column.
        row: 0-based number of the row in its table, which is its id unless it has one.
        place: place of the row for errors, such as "clips.csv:17".
        columns: the table's own name of a column by the name here, such as `{"reference": "caption"}`.

    Raises:
        DatasetError: naming the place, the column, its value and what was expected.
    """
    try:
        named = rename(record, columns or {})
        values = {name: value for name, value in named.items() if not _is_left_out(name, value)}
        return _row_of(values, extra=_extra_of(named), row=row, place=place)
    except ValueError as error:
        raise DatasetError(f"{place}: {error}") from error


def rename(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return a record with its columns under the names here.

    Raises:
        ValueError: if the record lacks a column that is to be renamed.
    """
    gone = [theirs for theirs in columns.values() if theirs not in record]
    if gone:
        raise ValueError(f"there is no column {gone[0]!r} as `columns` says: it has {sorted(map(str, record))}")
    # A column under its own name gives way to one that is renamed to it.
    kept = {name: value for name, value in record.items() if name not in (*columns, *columns.values())}
    return {**kept, **{ours: record[theirs] for ours, theirs in columns.items()}}


def is_missing(value: Any) -> bool:
    """Tell whether a value says that there is none: None, an empty or blank text, or NaN, as tables write it."""
    if isinstance(value, float) and math.isnan(value):
        return True
    return value is None or (isinstance(value, str) and not value.strip())


def _is_left_out(name: str, value: Any) -> bool:
    """Tell whether a column has no value; a CSV file may write null where no text could mean it."""
    is_null_text = isinstance(value, str) and value.strip().lower() == "null" and name in COLUMNS_THAT_MAY_SAY_NULL
    return is_null_text or is_missing(value)


def _row_of(values: Mapping[str, Any], *, extra: str | None, row: int, place: str) -> ManifestRow:
    texts: dict[str, Any] = {name: _text(values, name) for name in TEXT_COLUMNS}
    lists: dict[str, Any] = {name: _texts(values, name) for name in LIST_COLUMNS}
    masks = _masks(values)
    is_null = masks == EMPTY_MASKS or texts["category"] == NULL_CATEGORY
    _check_media(values)
    _check_answer(lists["choices"], texts["answer"])
    return ManifestRow(
        uid=_identifier(values, row),
        row=row,
        split=texts.pop("split") or DEFAULT_SPLIT,
        category=NULL_CATEGORY if is_null else texts["category"] or "",
        reference=_required(values, "reference"),
        origin=place,
        frames=_paths(values, "frames"),
        masks=masks,
        fps=_rate(values),
        extra=extra,
        **{name: value for name, value in texts.items() if name != "category"},
        **lists,
    )


def _check_media(values: Mapping[str, Any]) -> None:
    if "video" in values and "frames" in values:
        raise ValueError("it has both video and frames: give the clip's pictures once, as a video file or as pictures")
    if not {"video", "frames", "audio"} & set(values):
        raise ValueError("it has neither video nor frames nor audio: name the clip's file in one of these columns")


def _check_answer(choices: tuple[str, ...] | None, answer: str | None) -> None:
    if choices is None:
        return
    distinct = {choice.strip().lower() for choice in choices}
    if not 2 <= len(choices) <= MAX_CHOICES or len(distinct) < len(choices) or "" in distinct:
        raise ValueError(f"choices is {list(choices)}: expected 2 to {MAX_CHOICES} different texts")
    if answer is not None and answer not in choices:
        raise ValueError(f"the answer {answer!r} is none of the choices {list(choices)}: spell it as one of them")


def _identifier(values: Mapping[str, Any], row: int) -> str:
    value = values.get("id", row)
    if isinstance(value, str | bool):
        return _required({"id": value}, "id")
    is_whole = isinstance(value, numbers.Real) and float(value).is_integer()  # a column with gaps is one of floats
    return str(int(value)) if is_whole else _required({"id": value}, "id")


def _required(values: Mapping[str, Any], name: str) -> str:
    text = _text(values, name)
    if text is None:
        raise ValueError(
            f"it has no {name}: add the column, or say which one holds it, such as columns: {{{name}: caption}}"
        )
    return text


def _text(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_shown(value)}: expected text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair
        raise ValueError(f"{name} is {_shown(value)}, which is no valid text: {error}") from error
    return value.strip()


def _texts(values: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    """Read a list of texts; a text is JSON of a list, or one text."""
    if name not in values:
        return None
    value = _list_of(values[name])
    if not all(isinstance(each, str) for each in value):
        raise ValueError(f'{name} is {_shown(values[name])}: expected a list of texts, in CSV as ["a", "b"]')
    return tuple(_required({name: each}, name) for each in value)


def _paths(values: Mapping[str, Any], name: str) -> str | tuple[str, ...] | None:
    value = values.get(name)
    if isinstance(value, str) and not _is_json_list(value):
        return _text(values, name)
    paths = _texts(values, name)
    if paths == ():
        raise ValueError(f"{name} is an empty list: expected the pictures' paths, or their folder")
    return paths


def _masks(values: Mapping[str, Any]) -> str | tuple[str | None, ...] | None:
    value = values.get("masks")
    if value is None:
        return None
    if isinstance(value, str) and not _is_json_list(value):
        text = _text(values, "masks")
        return EMPTY_MASKS if text is not None and text.lower() == EMPTY_MASKS else text
    paths = [None if is_missing(path) else path for path in _list_of(value)]
    if not paths or not all(path is None or isinstance(path, str) for path in paths):
        raise ValueError(
            f"masks is {_shown(value)}: expected a path, a list of PNG files (null for a frame that is not annotated), "
            f'or "{EMPTY_MASKS}" for a reference to nothing'
        )
    return tuple(paths) if any(paths) else None


def _is_json_list(text: str) -> bool:
    return text.lstrip().startswith("[")


def _list_of(value: Any) -> Sequence[Any]:
    if isinstance(value, str) and _is_json_list(value):
        try:
            value = parse_json(value)
        except ValueError:
            return [value]  # a text that happens to begin with a bracket
    if hasattr(value, "tolist"):  # an array, as pandas and datasets hand lists over
        value = value.tolist()
    return value if isinstance(value, list | tuple) else [value]


def _rate(values: Mapping[str, Any]) -> float | None:
    value = values.get("fps")
    if value is None:
        return None
    rate = math.nan
    if not isinstance(value, bool) and isinstance(value, str | int | float):
        with contextlib.suppress(ValueError, OverflowError):
            rate = float(value)
    if not 0 < rate <= MAX_FPS:
        raise ValueError(f"fps is {_shown(value)}: expected frames a second, more than 0 and at most {MAX_FPS:g}")
    return rate


def _extra_of(record: Mapping[str, Any]) -> str | None:
    """Return the columns without a meaning here as a JSON object; missing values are null."""
    extra = {}
    for name, value in record.items():
        if name not in ROW_COLUMNS and name not in TAKEN_NAMES:
            extra[name] = None if is_missing(value) else _plain(value, name)
    return json.dumps(extra, ensure_ascii=False) if extra else None


def _plain(value: Any, name: str) -> Any:
    """Return a value as JSON holds it.

    Raises:
        ValueError: if JSON cannot hold it, such as bytes.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"column {name!r} holds {_shown(value)}, which cannot be handed to a reward ({error}): write it as text or "
            "numbers, or drop the column"
        ) from error


def _shown(value: Any) -> str:
    return re.sub(r"\s+", " ", repr(value))[:80]
