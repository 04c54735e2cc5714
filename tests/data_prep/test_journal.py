import os

import pytest

from data_prep.journal import Journal, JournalError, RecordLog, read_records


def record(row: int, text: str = "x") -> dict:
    return {"uid": f"u{row}", "row": row, "text": text}


def test_what_was_appended_is_there_when_it_is_opened_again_and_in_order_once_finished(tmp_path):
    path = tmp_path / "new folder" / "out.jsonl"
    with Journal(path) as journal:
        journal.append(record(2))
        journal.append(record(0, "é \ud800 \u2028"))  # half a surrogate pair, and a line separator
    with Journal(path) as journal:
        assert ("u2", 2) in journal and ("u0", 0) in journal and ("u0", 2) not in journal
        journal.append(record(1))
        journal.finish()
    assert read_records(path) == [record(0, "é \ud800 \u2028"), record(1), record(2)]
    assert sorted(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("torn", [b'{"uid": "u1", "ro', b'{"uid": "u1", "row": 1, "text": "\xc3', b"\0\0\0", b"7"])
def test_a_torn_last_line_is_dropped_and_the_next_record_does_not_follow_it(torn, tmp_path):
    path = tmp_path / "out.jsonl"
    with Journal(path) as journal:
        journal.append(record(0))
    with path.open("ab") as file:
        file.write(torn)
    with Journal(path) as journal:
        assert ("u1", 1) not in journal
        journal.append(record(1))
    assert read_records(path) == [record(0), record(1)]


def test_a_whole_last_line_without_its_end_is_kept(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text('{"uid": "u0", "row": 0, "text": "x"}')
    with Journal(path) as journal:
        assert ("u0", 0) in journal
        journal.append(record(1))
    assert read_records(path) == [record(0), record(1)]


def test_a_damaged_line_before_the_last_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text('{"uid": "u0", "row": 0}\n{"uid": "u1"\n{"uid": "u2", "row": 2}\n')
    with pytest.raises(JournalError, match=r"out.jsonl:2: .*; mend or remove the line"):
        Journal(path)
    path.write_text('{"uid": "u0", "row": true}\n')
    with pytest.raises(JournalError, match=r"out.jsonl:1: expected a record with 'uid' \(text\) and 'row'"):
        Journal(path)
    path.unlink()
    Journal(path).close()  # the failed openings left no lock behind


def test_a_second_record_of_a_row_is_refused_and_of_another_row_of_that_uid_is_not(tmp_path):
    path = tmp_path / "out.jsonl"
    with Journal(path) as journal:
        journal.append(record(0))
        journal.append({"uid": "u0", "row": 1})
        with pytest.raises(JournalError, match="already holds uid 'u0', row 0"):
            journal.append(record(0))
    with path.open("ab") as file:
        file.write(b'{"uid": "u0", "row": 1}\n')
    with pytest.raises(JournalError, match="already holds uid 'u0', row 1"):
        Journal(path)
    with RecordLog(path) as log:
        assert [line["row"] for line in log.records] == [0, 1, 1]


def test_two_writers_of_one_file_are_refused_also_after_it_was_replaced(tmp_path):
    path = tmp_path / "out.jsonl"
    with Journal(path) as journal:
        with pytest.raises(JournalError, match="another run writes to"):
            Journal(path)
        journal.append(record(0))
        journal.finish()
    with Journal(path), pytest.raises(JournalError, match="another run writes to"):
        Journal(path)


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    real_write = os.write
    with Journal(path) as journal:
        journal.append(record(0))

        def write_half(fd: int, data: bytes) -> int:
            real_write(fd, data[:7])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("data_prep.journal.os.write", write_half)
        with pytest.raises(OSError, match="No space left"):
            journal.append(record(1))
        monkeypatch.undo()
    assert read_records(path) == [record(0)]


def test_a_write_that_the_system_splits_is_completed(tmp_path, monkeypatch):
    real_write = os.write
    monkeypatch.setattr("data_prep.journal.os.write", lambda fd, data: real_write(fd, data[:3]))
    with Journal(tmp_path / "out.jsonl") as journal:
        journal.append(record(0))
    assert read_records(tmp_path / "out.jsonl") == [record(0)]
