"""What was appended to a journal survives the end of the run, and nothing in it is lost without a word."""

import json
import os
from pathlib import Path

import pytest

from aurora_rl.files.journal import Journal, JournalError, ResumeFile, RowJournal, read_rows

IDENTITY = {"preset": "refavs", "dataset": "abc", "steps": (1, 2)}


def record(row: int, text: str = "x") -> dict:
    return {"uid": f"u{row}", "row": row, "text": text}


def test_what_was_appended_is_there_when_it_is_opened_again_and_in_order_once_finished(tmp_path):
    path = tmp_path / "new folder" / "out.jsonl"
    with RowJournal(path) as journal:
        journal.append(record(2))
        journal.append(record(0, "é \ud800 \u2028"))  # half a surrogate pair, and a line separator
    with RowJournal(path) as journal:
        assert ("u2", 2) in journal and ("u0", 0) in journal and ("u0", 2) not in journal
        journal.append(record(1))
        journal.finish()
    assert read_rows(path) == [record(0, "é \ud800 \u2028"), record(1), record(2)]
    assert sorted(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("torn", [b'{"uid": "u1", "ro', b'{"uid": "u1", "row": 1, "text": "\xc3', b"\0\0\0", b"7"])
def test_a_torn_last_line_is_dropped_and_the_next_record_does_not_follow_it(torn, tmp_path):
    path = tmp_path / "out.jsonl"
    with RowJournal(path) as journal:
        journal.append(record(0))
    with path.open("ab") as file:
        file.write(torn)
    with RowJournal(path) as journal:
        assert ("u1", 1) not in journal
        journal.append(record(1))
    assert read_rows(path) == [record(0), record(1)]


def test_a_whole_last_line_without_its_end_is_kept(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text('{"uid": "u0", "row": 0, "text": "x"}')
    with RowJournal(path) as journal:
        assert ("u0", 0) in journal
        journal.append(record(1))
    assert read_rows(path) == [record(0), record(1)]


def test_a_damaged_line_before_the_last_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text('{"uid": "u0", "row": 0}\n{"uid": "u1"\n{"uid": "u2", "row": 2}\n')
    with pytest.raises(JournalError, match=r"out.jsonl:2: .*; repair or remove the line"):
        RowJournal(path)
    path.write_text('{"uid": "u0", "row": true}\n')
    with pytest.raises(JournalError, match=r"out.jsonl:1: expected a record with 'uid' \(text\) and 'row'"):
        RowJournal(path)
    path.unlink()
    RowJournal(path).close()  # the failed openings left no lock behind


def test_a_second_record_of_a_row_is_refused_and_of_another_row_of_that_uid_is_not(tmp_path):
    path = tmp_path / "out.jsonl"
    with RowJournal(path) as journal:
        journal.append(record(0))
        journal.append({"uid": "u0", "row": 1})
        with pytest.raises(JournalError, match="already holds uid 'u0', row 0"):
            journal.append(record(0))
    with path.open("ab") as file:
        file.write(b'{"uid": "u0", "row": 1}\n')
    with pytest.raises(JournalError, match=r"out.jsonl:3: .*already holds uid 'u0', row 1"):
        RowJournal(path)
    with Journal(path) as log:
        assert [line["row"] for line in log.records] == [0, 1, 1]


def test_two_writers_of_one_file_are_refused_also_after_it_was_replaced(tmp_path):
    path = tmp_path / "out.jsonl"
    with RowJournal(path) as journal:
        with pytest.raises(JournalError, match="another run writes to"):
            RowJournal(path)
        journal.append(record(0))
        journal.finish()
    with RowJournal(path), pytest.raises(JournalError, match="another run writes to"):
        RowJournal(path)


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    real_write = os.write
    with RowJournal(path) as journal:
        journal.append(record(0))

        def write_half(fd: int, data: bytes) -> int:
            real_write(fd, data[:7])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("aurora_rl.files.journal.os.write", write_half)
        with pytest.raises(OSError, match="No space left"):
            journal.append(record(1))
        monkeypatch.undo()
    assert read_rows(path) == [record(0)]


def test_a_write_that_the_system_splits_is_completed(tmp_path, monkeypatch):
    real_write = os.write
    monkeypatch.setattr("aurora_rl.files.journal.os.write", lambda fd, data: real_write(fd, data[:3]))
    with RowJournal(tmp_path / "out.jsonl") as journal:
        journal.append(record(0))
    assert read_rows(tmp_path / "out.jsonl") == [record(0)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A resume file of two records."""
    path = tmp_path / "made" / "out.partial.jsonl"
    with ResumeFile(path, IDENTITY) as resume_file:
        resume_file.append({"row": 3})
        resume_file.append({"row": 1})
    return path


def test_records_are_read_by_the_next_run_and_kept(path):
    with ResumeFile(path, IDENTITY) as resume_file:
        assert resume_file.records == [{"row": 3}, {"row": 1}]
        resume_file.append({"row": 2})
    assert records_in(path) == [{"row": 3}, {"row": 1}, {"row": 2}]


def test_record_is_on_disk_before_the_resume_file_is_closed(tmp_path):
    with ResumeFile(tmp_path / "j", IDENTITY) as resume_file:
        resume_file.append({"row": 3})
        assert (tmp_path / "j").read_text().splitlines() == [json.dumps(IDENTITY), '{"row": 3}']


@pytest.mark.parametrize(("cut", "kept"), [(0, [3, 1]), (1, [3, 1]), (2, [3]), (5, [3]), (11, [3])])
def test_line_that_was_cut_off_is_dropped_and_written_over(path, cut, kept):
    """One that lacks its line end alone is whole."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - cut])
    with ResumeFile(path, IDENTITY) as resume_file:
        assert [record["row"] for record in resume_file.records] == kept
        resume_file.append({"row": 2})
    assert [record["row"] for record in records_in(path)] == [*kept, 2]


def test_a_damaged_line_of_a_resume_file_is_named_and_what_follows_it_is_not_lost(path):
    identity, first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(identity + first[:4] + b"\n" + second)
    with pytest.raises(JournalError, match=r"out.partial.jsonl:2: .*; repair or remove the line"):
        ResumeFile(path, IDENTITY)
    path.write_bytes(identity + second)
    assert records_in(path) == [{"row": 1}]


def test_resume_file_of_another_run_is_not_read(path, caplog):
    with ResumeFile(path, IDENTITY | {"preset": "davis"}) as resume_file:
        assert resume_file.records == []
    assert "belongs to another run" in caplog.text
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[]\n", b'{"preset"'])
def test_file_that_is_no_resume_file_is_written_anew(tmp_path, content):
    (tmp_path / "j").write_bytes(content)
    with ResumeFile(tmp_path / "j", IDENTITY) as resume_file:
        assert resume_file.records == []
        resume_file.append({"row": 3})
    assert records_in(tmp_path / "j") == [{"row": 3}]


def test_finished_run_leaves_no_resume_file(path):
    with ResumeFile(path, IDENTITY) as resume_file:
        resume_file.remove()
    assert list(path.parent.iterdir()) == []


def records_in(path: Path) -> list[dict]:
    with ResumeFile(path, IDENTITY) as resume_file:
        return resume_file.records
