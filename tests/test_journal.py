"""Records that survive the end of a run."""

import json
from pathlib import Path

import pytest

from aurora_rl.journal import Journal

IDENTITY = {"preset": "refavs", "dataset": "abc"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of two records."""
    path = tmp_path / "made" / "out.partial.jsonl"
    with Journal(path, IDENTITY) as journal:
        journal.append({"row": 3})
        journal.append({"row": 1})
    return path


def test_records_are_read_by_the_next_run_and_kept(path):
    with Journal(path, IDENTITY) as journal:
        assert journal.records == [{"row": 3}, {"row": 1}]
        journal.append({"row": 2})
    assert Journal(path, IDENTITY).records == [{"row": 3}, {"row": 1}, {"row": 2}]


def test_record_is_on_disk_before_the_journal_is_closed(tmp_path):
    journal = Journal(tmp_path / "j", IDENTITY)
    journal.append({"row": 3})
    assert (tmp_path / "j").read_text().splitlines() == [json.dumps(IDENTITY), '{"row": 3}']


@pytest.mark.parametrize("cut", [1, 5])
def test_line_that_was_cut_off_is_dropped_and_written_over(path, cut):
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path, IDENTITY) as journal:
        assert journal.records == [{"row": 3}]
        journal.append({"row": 2})
    assert Journal(path, IDENTITY).records == [{"row": 3}, {"row": 2}]


def test_journal_of_another_run_is_not_read(path, caplog):
    with Journal(path, IDENTITY | {"preset": "davis"}) as journal:
        assert journal.records == []
    assert "of another run" in caplog.text
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[]\n", b'{"preset"'])
def test_file_that_is_no_journal_is_written_anew(tmp_path, content):
    (tmp_path / "j").write_bytes(content)
    with Journal(tmp_path / "j", IDENTITY) as journal:
        assert journal.records == []
        journal.append({"row": 3})
    assert Journal(tmp_path / "j", IDENTITY).records == [{"row": 3}]


def test_finished_run_leaves_no_journal(path):
    with Journal(path, IDENTITY) as journal:
        journal.remove()
    assert not path.exists()
