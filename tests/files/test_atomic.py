"""A file of results is the former one or the new one, whatever goes wrong while it is written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aurora_rl.cli import main
from aurora_rl.evaluation.records import write_evaluation, write_results
from aurora_rl.evaluation.tables import score_tables
from aurora_rl.export.model_card import CardDetails, write_model_card
from aurora_rl.files.atomic import (
    give_names,
    nameless_file,
    whole_entries,
    whole_file,
    whole_files,
    whole_folder,
    write_whole,
)
from aurora_rl.files.output_lock import OutputInUseError
from aurora_rl.models.loading import LoadedModel
from tests.row_results import row


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


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write_tree(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        write_whole(folder / name, text)


FORMER = {"a.txt": "old", "masks/0.png": "old", "masks/1.png": "old", "mine": "mine"}


def test_entries_replace_those_of_their_names_and_leave_the_others(tmp_path: Path) -> None:
    write_tree(tmp_path, FORMER)
    (tmp_path / "link").symlink_to("mine")
    with whole_entries(tmp_path) as new:
        write_tree(new, {"a.txt": "new", "masks/0.png": "new", "link": "new"})
        assert (tmp_path / "a.txt").read_text() == "old"
    assert tree(tmp_path) == {"a.txt": "new", "masks/0.png": "new", "mine": "mine", "link": "new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "link", "masks", "mine"]


def test_entries_that_cannot_all_be_put_in_place_go_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path, FORMER)
    replace = os.replace

    def refuse_masks(source: Path, target: Path) -> None:
        if source.parent.name == "new" and source.name == "masks":
            raise PermissionError(13, "Permission denied", str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_masks)
    with pytest.raises(PermissionError, match=r"masks cannot be written .*unchanged"), whole_entries(tmp_path) as new:
        for name in ("a.txt", "b.txt", "masks"):
            (new / name).write_text("new")
    assert tree(tmp_path) == FORMER
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "masks", "mine"]


def test_what_cannot_be_read_while_entries_are_written_keeps_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No such file.*clip\.mp4"), whole_entries(tmp_path / "out"):
        (tmp_path / "clip.mp4").read_bytes()
    assert list((tmp_path / "out").iterdir()) == []


def test_on_a_full_disk_a_model_card_stays_as_it_was(tmp_path: Path, loaded: LoadedModel, nearly_full: None) -> None:
    (tmp_path / "README.md").write_text("former")
    with pytest.raises(OSError, match=r"README\.md cannot be written .*unchanged: free space"):
        write_model_card(tmp_path, loaded, CardDetails("name"), base_model=None)
    assert tree(tmp_path) == {"README.md": "former"}


def test_on_a_full_disk_scores_stay_as_they_were_and_the_error_says_what_to_do(
    tmp_path: Path, nearly_full: None, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = {"x": 1}
    write_evaluation(tmp_path, [row(0)], tables)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OSError, match=r"scores\.json cannot be written .*unchanged: free space"):
        write_evaluation(tmp_path, [row(index) for index in range(100)], tables)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_on_a_full_disk_a_comparison_and_its_page_stay_as_they_were(
    tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        rows = [row(index) for index in range(3)]
        write_evaluation(tmp_path / name, rows, score_tables(rows) | {"source": name})
    command = ["compare", str(tmp_path / "a"), str(tmp_path / "b")]
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


def test_a_file_that_gets_its_name_last_is_there_under_no_other(tmp_path: Path) -> None:
    with nameless_file(tmp_path / "made") as file:
        file.write(b"x")
        give_names({tmp_path / "made" / "named": file})
    with nameless_file(tmp_path / "made"):
        pass
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["named"]


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_takes_the_place_of_the_former_one_when_it_is_whole(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with whole_folder(tmp_path / "a" / "b") as folder:
            (folder / f"{text}.txt").write_text(text)
    assert contents(tmp_path) == {"a/b/second.txt": "second"}


def test_an_error_of_the_writer_leaves_the_former_folder(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "x") as folder:
        (folder / "new").write_text("new")
        1 / 0  # noqa: B018
    assert contents(tmp_path) == {"x/old": "old"}


def test_a_folder_that_cannot_be_renamed_leaves_the_former_one(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").write_text("old")
    with pytest.raises(FileNotFoundError), whole_folder(tmp_path / "x") as folder:
        folder.rmdir()
    assert contents(tmp_path) == {"x/old": "old"}


def test_what_a_killed_writer_of_a_folder_has_left_is_put_right_by_the_next(tmp_path: Path) -> None:
    for name in (".x.new", ".x.former"):  # as a kill between the two renamings leaves them
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "x"):
        1 / 0  # noqa: B018
    assert contents(tmp_path) == {"x/.x.former": ".x.former"}


def test_two_writers_of_one_folder_are_refused(tmp_path: Path) -> None:
    writer = (
        "import sys\nfrom aurora_rl.files.atomic import whole_folder\n"
        "with whole_folder(sys.argv[1]):\n    print('writes', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", writer, str(tmp_path / "x")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "writes\n"
        with pytest.raises(OutputInUseError, match="another run writes to"), whole_folder(tmp_path / "x"):
            pass
        assert (tmp_path / ".x.new").is_dir()
        first.communicate("")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
