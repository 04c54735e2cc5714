import json
from pathlib import Path

import pytest

from aurora_rl.data.files import DatasetError
from aurora_rl.data.tool_table import all_sets, load_tool_questions, rights_of, set_text


def write_table(folder: Path, *, entries: int = 4, again: bool = False) -> Path:
    """One question, two tools; the second one helps."""
    (folder / "tools.json").write_text(json.dumps([["tempo", "Tell the tempo"], ["pitch", "Tell the pitch"]]))
    row = {"uid": "a", "row": 3, "split": "train", "question": "Which note?", "choices": ["A4", "C4"], "answer": "A4"}
    (folder / "rows.jsonl").write_text(json.dumps({**row, "kind": "pitch", "sound": "../a.wav"}) + "\n")
    sets = [*all_sets(2)[:entries], *([()] if again else [])]
    lines = [{"uid": "a", "row": 3, "tools": list(chosen), "right": 1 in chosen} for chosen in sets]
    (folder / "table.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_question_has_its_tools_and_what_every_set_is_worth(tmp_path: Path) -> None:
    (sample,) = load_tool_questions(write_table(tmp_path), "train")
    assert rights_of(sample) == {(): False, (0,): False, (1,): True, (0, 1): True}
    assert sample.extra_columns["tools"][1] == ["pitch", "Tell the pitch"]
    assert (sample.choices, sample.answer, sample.num_frames) == (("A4", "C4"), "A4", 0)
    assert sample.audio_path == str(tmp_path.parent / "a.wav")


def test_a_row_without_an_entry_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"a#3 has no entry for the tools \[0,1\]"):
        load_tool_questions(write_table(tmp_path, entries=3), "train")


def test_a_repeated_set_an_unknown_split_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"has the tools \[\] of a#3 again"):
        load_tool_questions(write_table(tmp_path, again=True), "train")
    with pytest.raises(DatasetError, match="no row of the split 'test'"):
        load_tool_questions(write_table(tmp_path), "test")
    (tmp_path / "tools.json").unlink()
    with pytest.raises(DatasetError, match="cannot read the tools"):
        load_tool_questions(tmp_path, "train")


def test_there_are_two_to_the_n_sets_of_at_most_five_tools() -> None:
    assert [len(all_sets(count)) for count in (1, 3, 5)] == [2, 8, 32]
    assert set_text((2, 0)) == "0,2"
    with pytest.raises(ValueError, match="6 tools"):
        all_sets(6)
