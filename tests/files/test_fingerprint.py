"""Fingerprints lie on users' disks: the values here are those of 0.1.0, and must not change."""

import os
from pathlib import Path

import pytest

from aurora_rl.files.fingerprint import (
    fingerprint_bytes,
    fingerprint_content,
    fingerprint_files,
    fingerprint_names,
    fingerprint_values,
)
from aurora_rl.files.plain import NotPlainFileError
from aurora_rl.models.checkpoint_files import fingerprint_checkpoint
from aurora_rl.models.encoding import PromptOptions
from aurora_rl.models.teacher import fingerprint_teacher


@pytest.fixture
def two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    for name, content in (("a.txt", "abc"), ("b.txt", "hello")):
        Path(name).write_text(content)
        os.utime(name, (1e9, 1e9))
    return ["a.txt", "b.txt"]


def test_files_are_known_by_names_sizes_and_times_in_any_order(two_files):
    assert fingerprint_files((name, os.stat(name)) for name in reversed(two_files)) == "c5ba1d6c04574f98"
    os.utime("b.txt")
    assert fingerprint_files((name, os.stat(name)) for name in two_files) != "c5ba1d6c04574f98"


def test_files_are_known_by_names_and_sizes_in_their_order(two_files):
    known = "6fa1b497f5fc62df987e68a7cfa7021c0086ca122657450481257075e560c4a7"
    assert fingerprint_names([os.path.abspath(name) for name in two_files]) == known
    assert fingerprint_names(reversed(two_files)) != known


def test_a_file_is_known_by_its_content(two_files):
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180's own example
    assert fingerprint_content(Path("a.txt")) == fingerprint_bytes(b"abc") == known
    with pytest.raises(NotPlainFileError, match="a folder"):
        fingerprint_content(Path())


def test_values_are_known_by_their_json():
    assert fingerprint_values(["a", 1, None, (2.5, "é")]) == fingerprint_bytes(b'["a", 1, null, [2.5, "\\u00e9"]]')


def test_a_checkpoint_is_known_by_weights_and_configs_and_by_what_is_beneath_an_adapter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contents = {
        "m/config.json": "{}",
        "m/model.safetensors": "w",
        "adapter/adapter_config.json": '{"base_model_name_or_path": "m"}',
        "adapter/adapter_model.safetensors": "v",
    }
    for name, content in contents.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(content)
    model = "529622a55abeedb1f4cc90ad07ad0b77f36e98c6892d42fc01721cb515731615"
    adapter = "fdf8d5ca6724db4168fa58761c723238cda606e86a196b1f7d99d81653318192"
    assert [fingerprint_checkpoint(name) for name in ("m", "adapter")] == [model, adapter]
    teacher = fingerprint_teacher("m", PromptOptions(instruction="{reference}"), dtype="bf16")
    assert teacher == "ca921177c6c043de3172be272356db640cc8d58790c1addb57917f2d82bcc6ff"
    Path("m/model.safetensors").write_text("x")
    assert fingerprint_checkpoint("adapter") != adapter
