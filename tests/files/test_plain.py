"""What is no plain file, and what is no record, is named before it does harm."""

import json
import os

import pytest

from aurora_rl.data.chains import _records
from aurora_rl.data.files import DatasetError
from aurora_rl.evaluation.records import read_results
from aurora_rl.files.journal import JournalError, read_rows
from aurora_rl.files.plain import NotPlainFileError, RecordError, check_plain_file, parse_json, read_records

DAMAGED = {
    "nested": "[" * 100_000 + "]" * 100_000,
    "nested in a field": '{"uid": "a", "row": 0, "x": ' + "[" * 200 + "]" * 200 + "}",
    "cut off": '{"uid": "a"',
    "a list": "[1]",
    "a number": "7",
    "no UTF-8": b'{"uid": "\xff"}',
}
GOOD = {
    "uid": "a_cat_1",
    "row": 0,
    "category": "cat",
    "steps": {"look": "A cat.", "listen": "A cat.", "read": "The cat."},
    "answer": "the target is the cat. It is [SEG].",
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
def test_every_reader_of_records_names_file_and_line(tmp_path, line):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    readers = [
        (lambda: list(read_records(path)), RecordError),
        (lambda: list(_records(path)), DatasetError),
        (lambda: read_results(path), ValueError),
        (lambda: read_rows(path), JournalError),
    ]
    for read, kind in readers:
        with pytest.raises(kind, match=r"out\.jsonl:2"):
            read()


@pytest.mark.parametrize(
    "change",
    [
        {"steps": dict.fromkeys(GOOD["steps"], 1)},
        {"steps": {**GOOD["steps"], "look": ["A cat."]}},
        {"steps": {**GOOD["steps"], "look": "half a pair: \ud800"}},
        {"row": True},
        {"uid": None},
        {"reference_type": 3},
        {"wrong": {"text": "A dog."}},
        {"answer": ["It is [SEG]."]},
    ],
)
def test_chain_of_other_types_is_named_by_file_and_line(tmp_path, change):
    path = tmp_path / "chains.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | change) + "\n")
    with pytest.raises(DatasetError, match=r"chains\.jsonl:2: "):
        list(_records(path))


def test_pipes_devices_and_links_to_them_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "out.jsonl")
    (tmp_path / "link").symlink_to(tmp_path / "out.jsonl")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path, kind in (("out.jsonl", "a pipe"), ("link", "a pipe"), ("zero", "a device"), (".", "a folder")):
        with pytest.raises(NotPlainFileError, match=f"no plain file but {kind}"):
            check_plain_file(tmp_path / path)
    for read in (lambda p: list(_records(p)), read_results, lambda p: read_results(p.with_suffix(".json"))):
        with pytest.raises(ValueError, match="a pipe"):
            read(tmp_path / "out.jsonl")


def test_json_as_deep_as_our_own_is_read():
    value: list = []
    for _ in range(99):
        value = [value]
    assert parse_json(json.dumps(value)) == value
    with pytest.raises(ValueError, match="more than 100 deep"):
        parse_json(json.dumps([value]))
    assert parse_json(json.dumps([[1]] * 1000)) == [[1]] * 1000
