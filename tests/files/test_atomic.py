"""A file of results is the former one or the new one, whatever goes wrong while it is written."""

import json
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from aurora_rl.cli import main
from aurora_rl.evaluation.records import write_results
from aurora_rl.evaluation.scores import RowScore, score_tables, write_scores
from aurora_rl.files.atomic import whole_file, whole_files, write_whole


@pytest.fixture
def nearly_full() -> Iterator[None]:
    """No file may grow above 1,000 bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, previous)


def row(index: int) -> RowScore:
    return RowScore(f"u{index}", index, "s", f"m{index}", "c", "r", False, "t", "refavs", 0.5, 0.5, 0.0, 0.0, False)


def test_a_file_is_made_with_its_folder(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b.txt", "é\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "é\n".encode()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"


def test_an_error_of_the_writer_leaves_the_former_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "x", "old")
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "x") as file:
        file.write(b"new")
        1 / 0  # noqa: B018
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x", "old")]


def test_of_files_that_belong_together_all_are_replaced_or_none(tmp_path: Path, nearly_full: None) -> None:
    write_whole(tmp_path / "a", "old a")
    write_whole(tmp_path / "b", "old b")
    both = whole_files(tmp_path / "a", tmp_path / "b")
    with pytest.raises(OSError, match=r"a and .*b cannot be written"), both as (a, b):
        a.write(b"new a")
        b.write(bytes(2000))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old a", "b": "old b"}


def test_on_a_full_disk_scores_stay_as_they_were_and_the_error_says_what_to_do(
    tmp_path: Path, nearly_full: None, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = {"x": 1}
    write_scores(tmp_path / "out.json", [row(0)], tables)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OSError, match=r"out\.json cannot be written .*unchanged: free space"):
        write_scores(tmp_path / "out.json", [row(index) for index in range(100)], tables)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_on_a_full_disk_a_comparison_and_its_page_stay_as_they_were(
    tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        rows = [row(index) for index in range(3)]
        write_scores(tmp_path / f"{name}.json", rows, score_tables(rows) | {"source": name})
    command = ["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    for option, name in (("--output", "c.json"), ("--report", "c.html")):
        (tmp_path / name).write_text("former")
        request.getfixturevalue("nearly_full")
        assert main([*command, option, str(tmp_path / name)]) == 2
        assert f"{name} cannot be written" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == "former"


def test_results_that_cannot_be_written_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text(json.dumps({}) + "\n")
    with pytest.raises(TypeError):
        write_results(tmp_path / "results.jsonl", [object()])  # type: ignore[list-item]
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]
    assert (tmp_path / "results.jsonl").read_text() == "{}\n"
