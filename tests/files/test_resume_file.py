"""Records that survive the end of a run."""

import json
from pathlib import Path

import pytest

from aurora_rl.files.resume_file import ResumeFile

IDENTITY = {"preset": "refavs", "dataset": "abc"}


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
    assert ResumeFile(path, IDENTITY).records == [{"row": 3}, {"row": 1}, {"row": 2}]


def test_record_is_on_disk_before_the_resume_file_is_closed(tmp_path):
    resume_file = ResumeFile(tmp_path / "j", IDENTITY)
    resume_file.append({"row": 3})
    assert (tmp_path / "j").read_text().splitlines() == [json.dumps(IDENTITY), '{"row": 3}']


@pytest.mark.parametrize("cut", [1, 5])
def test_line_that_was_cut_off_is_dropped_and_written_over(path, cut):
    path.write_bytes(path.read_bytes()[:-cut])
    with ResumeFile(path, IDENTITY) as resume_file:
        assert resume_file.records == [{"row": 3}]
        resume_file.append({"row": 2})
    assert ResumeFile(path, IDENTITY).records == [{"row": 3}, {"row": 2}]


def test_resume_file_of_another_run_is_not_read(path, caplog):
    with ResumeFile(path, IDENTITY | {"preset": "davis"}) as resume_file:
        assert resume_file.records == []
    assert "of another run" in caplog.text
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[]\n", b'{"preset"'])
def test_file_that_is_no_resume_file_is_written_anew(tmp_path, content):
    (tmp_path / "j").write_bytes(content)
    with ResumeFile(tmp_path / "j", IDENTITY) as resume_file:
        assert resume_file.records == []
        resume_file.append({"row": 3})
    assert ResumeFile(tmp_path / "j", IDENTITY).records == [{"row": 3}]


def test_finished_run_leaves_no_resume_file(path):
    with ResumeFile(path, IDENTITY) as resume_file:
        resume_file.remove()
    assert not path.exists()
