import os

import pytest

from aurora_rl.files.existing import (
    UnusablePathError,
    check_file,
    check_folder,
    check_writable_file,
    check_writable_folder,
    did_you_mean,
    entries,
)


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """outputs/ with demo/, smoke/ and notes.txt, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "smoke", ".hidden"):
        (tmp_path / "outputs" / name).mkdir(parents=True)
    (tmp_path / "outputs" / "notes.txt").touch()
    return tmp_path / "outputs"


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("outputs/dmeo/sft", "outputs holds demo/, notes.txt, smoke/, did you mean 'demo'?"),
        ("outputs/zzz", "outputs holds demo/, notes.txt, smoke/"),
        ("nowhere/at/all", "this folder holds outputs/"),
        ("outputs/demo/x", "outputs/demo holds nothing"),
        ("outputs/notes.txt/x", "outputs/notes.txt is a file, not a folder"),
    ],
)
def test_what_is_missing_is_told_with_what_is_there(outputs, path, told):
    for check in (check_folder, check_file):
        with pytest.raises(UnusablePathError) as error:
            check(path, name="--model")
        assert str(error.value) == f"--model {path} does not exist: {told}"


def test_a_file_is_no_folder_and_a_folder_no_file(outputs):
    with pytest.raises(UnusablePathError, match="--model outputs/notes.txt is no folder but a file"):
        check_folder("outputs/notes.txt", name="--model")
    with pytest.raises(UnusablePathError, match="--config: outputs/demo is no plain file but a folder"):
        check_file("outputs/demo", name="--config")
    os.mkfifo(outputs / "pipe")
    with pytest.raises(UnusablePathError, match="a pipe"):
        check_file("outputs/pipe", name="--config")
    check_folder("outputs/demo", name="--model")
    check_file("outputs/notes.txt", name="--config")


def test_nothing_is_made_where_something_is_to_be_written(outputs):
    check_writable_folder("outputs/new/deep", name="--output_dir")
    check_writable_file("outputs/new/out.json", name="--output")
    check_writable_file("outputs/notes.txt", name="--output")
    assert not (outputs / "new").exists()
    with pytest.raises(UnusablePathError, match="outputs/notes.txt is a file, give another folder"):
        check_writable_folder("outputs/notes.txt/x", name="--output_dir")
    with pytest.raises(UnusablePathError, match="--output outputs/demo is a folder: give the name of a file"):
        check_writable_file("outputs/demo", name="--output")
    with pytest.raises(UnusablePathError, match="outputs/notes.txt is a file"):
        check_writable_file("outputs/notes.txt/out.json", name="--output")


def test_a_folder_that_may_not_be_written_is_refused(outputs, monkeypatch):
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)  # the tests may be run by root
    with pytest.raises(UnusablePathError, match="this user may not write to outputs/demo"):
        check_writable_folder("outputs/demo/new", name="--output_dir")
    with pytest.raises(UnusablePathError, match="may not be read"):
        check_file("outputs/notes.txt", name="--config")


def test_a_few_entries_are_named_the_similar_ones_first(tmp_path):
    for number in range(9):
        (tmp_path / f"file{number}").touch()
    assert entries(tmp_path, like="file7").startswith("file7, ")
    assert entries(tmp_path).endswith("file5 and 3 more")


def test_a_word_like_no_other_is_not_corrected():
    assert did_you_mean("fsp", ["fps", "num_frames"]) == ", did you mean 'fps'?"
    assert did_you_mean("zzz", ["fps", "num_frames"]) == ""
