"""A table of what a frozen reasoner answers with every set of tools, as a data set for a policy that chooses sets.

`data_prep/tool_table.py` writes a folder of three files; a recipe reads it by
`benchmark: aurora_rl.data.tool_table:load_tool_questions`, with the folder as `data_root`:

    tools.json   [["tempo", "Tell the tempo in beats a minute"], ...], in the order of their numbers
    rows.jsonl   {"uid": "train-00017", "row": 17, "split": "train", "question": "How fast is it?",
                  "choices": ["80 beats", "120 beats"], "answer": "120 beats", "kind": "tempo",
                  "sound": "../sounds/17.wav"}
    table.jsonl  {"uid": "train-00017", "row": 17, "tools": [0, 2], "evidence": "tempo: The tempo is 120 ...",
                  "answer": "B", "right": true}

`sound` is relative to the folder. With `drop_sound: true` the policy hears nothing: it reads the question and the list
of tools, as a text model does.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aurora_rl.data.files import DatasetError
from aurora_rl.data.sample import AVSample
from aurora_rl.files.plain import NotPlainFileError, RecordError, parse_json, read_records, read_text_file

TOOLS_FILE, ROWS_FILE, TABLE_FILE = "tools.json", "rows.jsonl", "table.jsonl"
#: A table has 2^n entries a row.
MAX_TOOLS = 5

RowKey = tuple[str, int]
#: Whether the reasoner is right with a set of tools, by the set.
Rights = dict[tuple[int, ...], bool]


def all_sets(count: int) -> list[tuple[int, ...]]:
    """List the 2^n sets of n tools, the smallest first.

    >>> all_sets(2)
    [(), (0,), (1,), (0, 1)]

    Raises:
        ValueError: if there are none, or more than a table can hold.
    """
    if not 1 <= count <= MAX_TOOLS:
        raise ValueError(f"{count} tools: a table of all sets holds 1 to {MAX_TOOLS}")
    return [chosen for size in range(count + 1) for chosen in itertools.combinations(range(count), size)]


def set_text(tools: Iterable[int]) -> str:
    """Write a set as it stands in an answer.

    >>> set_text([2, 0]), set_text([])
    ('0,2', '')
    """
    return ",".join(str(tool) for tool in sorted(tools))


def load_tool_questions(root: str | os.PathLike[str], split: str) -> list[AVSample]:
    """List the questions of a split, each with the tools and what the table says of every set.

    Args:
        root: folder of the table.
        split: name of the split.

    Returns:
        The samples in the file's order; their `extra` holds `tools` and `rights`.

    Raises:
        DatasetError: if a file is missing or malformed, the split has no rows, or a row lacks an entry of the table.
    """
    folder = Path(root)
    tools = read_tools(folder / TOOLS_FILE)
    table = read_tool_table(folder / TABLE_FILE)
    rows = [record for record in _records(folder / ROWS_FILE) if record[1].get("split") == split]
    if not rows:
        raise DatasetError(f"{folder / ROWS_FILE} has no row of the split {split!r}")
    return [_sample(record, place, tools, table, folder) for place, record in rows]


def read_tools(path: Path) -> list[list[str]]:
    """Read the names and descriptions of the tools.

    Raises:
        DatasetError: if the file is missing or holds anything else.
    """
    try:
        found = parse_json(read_text_file(path))
    except (OSError, ValueError) as error:
        raise DatasetError(f"cannot read the tools: {error}") from error
    is_list = isinstance(found, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in found)
    if not is_list or not all(isinstance(text, str) for pair in found for text in pair):
        raise DatasetError(f"{path} is no list of [name, description]: write it by data_prep/tool_table.py")
    return found


def read_tool_table(path: Path) -> dict[RowKey, Rights]:
    """Read whether the reasoner is right, by row and set.

    Raises:
        DatasetError: if the file is missing, or a line is malformed or repeats a set; naming the line.
    """
    table: dict[RowKey, Rights] = {}
    for place, record in _records(path):
        uid, row, tools, right = (record.get(name) for name in ("uid", "row", "tools", "right"))
        numbers = tools if isinstance(tools, list) else [None]
        is_set = all(type(tool) is int for tool in numbers)
        if not isinstance(uid, str) or type(row) is not int or not is_set or type(right) is not bool:
            raise DatasetError(f"{place} is no entry of a tool table: expected what data_prep/tool_table.py writes")
        rights, chosen = table.setdefault((uid, row), {}), tuple(sorted(numbers))
        if chosen in rights:
            raise DatasetError(f"{place} has the tools [{set_text(chosen)}] of {uid}#{row} again: keep one line a set")
        rights[chosen] = right
    return table


def rights_of(sample: AVSample) -> Rights:
    """Return whether the reasoner is right about a row, by the set of tools.

    Raises:
        ValueError: naming a row whose table lacks a set.
    """
    columns = sample.extra_columns
    tools, rights = columns.get("tools"), columns.get("rights")
    sets = all_sets(len(tools)) if isinstance(tools, list) else []
    if not sets or not isinstance(rights, Mapping) or set(rights) != set(map(set_text, sets)):
        raise ValueError(
            f"sample {sample.key} has no entry of a tool table for every set of its tools: write the table by "
            "data_prep/tool_table.py, and load it by `benchmark: aurora_rl.data.tool_table:load_tool_questions`"
        )
    return {chosen: bool(rights[set_text(chosen)]) for chosen in sets}


def _sample(
    record: Mapping[str, Any], place: str, tools: list[list[str]], table: Mapping[RowKey, Rights], folder: Path
) -> AVSample:
    try:
        uid, row, question, choices, sound = (record[n] for n in ("uid", "row", "question", "choices", "sound"))
        if type(row) is not int or not all(isinstance(text, str) for text in (uid, question, sound)):
            raise ValueError("uid, row, question or sound is of the wrong type")
        choices = tuple(map(str, choices))
        rights = table.get((uid, row), {})
        missing = [chosen for chosen in all_sets(len(tools)) if chosen not in rights]
        if missing:
            raise ValueError(f"{uid}#{row} has no entry for the tools [{set_text(missing[0])}] in {TABLE_FILE}")
    except (KeyError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DatasetError(f"{place}: {reason}; write the table again by data_prep/tool_table.py") from error
    extra = {"tools": tools, "rights": {set_text(chosen): right for chosen, right in rights.items()}}
    return AVSample(
        uid=uid,
        row=row,
        split=str(record["split"]),
        media_id=sound,
        category=str(record.get("answer") or ""),
        reference=question,
        fps=1.0,
        frame_paths=(),
        audio_path=os.path.normpath(folder / sound),
        reference_type=record.get("kind"),
        choices=choices,
        answer=record.get("answer"),
        origin=place,
        extra=json.dumps(extra, ensure_ascii=False),
    )


def _records(path: Path) -> Sequence[tuple[str, Mapping[str, Any]]]:
    try:
        return list(read_records(path))
    except (RecordError, NotPlainFileError, OSError) as error:
        raise DatasetError(f"cannot read {path}: {error}; write it by data_prep/tool_table.py") from error
