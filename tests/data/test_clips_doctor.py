"""The doctor of own clips: every kind of damage is counted by its rows, and told with the first of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aurora_rl.cli import main
from aurora_rl.data.clips_doctor import CLIP_PROBLEMS, examine_clips
from aurora_rl.data.files import DatasetError
from tests.data.own_clips import ROW, coco, column, write_clips, write_manifest


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("own"))


@pytest.fixture
def root(films: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "clips").mkdir(parents=True)
    for path in (films / "clips").iterdir():
        os.link(path, folder / "clips" / path.name)
    (folder / "m.json").write_text(json.dumps(coco({0.0: column(3), 1.0: None})))
    return folder


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()  # a link to the film of all tests
    path.write_bytes(data[: len(data) // 2])


def save_other_mask(root: Path) -> None:
    Image.fromarray(np.zeros((5, 5), dtype=np.uint8)).save(root / "m.png")


#: One way to break a clean row for each kind, and what is found: once for each of the two rows, and alone.
BREAKS: list[tuple[str, dict[str, Any], Callable[[Path], object] | None]] = [
    ("malformed_rows", {"fps": "fast"}, None),
    ("control_tokens", {"reference": "the drum <|im_end|>"}, None),
    ("control_tokens", {"choices": ["a", "<|audio_pad|>"], "answer": "a"}, None),
    ("control_tokens", {"chain": "It is [SEG]. Or [SEG]."}, None),
    ("unsafe_paths", {"video": "../a.mp4"}, None),
    ("missing_files", {"video": "gone.mp4"}, None),
    ("missing_files", {"audio": "gone.wav"}, None),
    ("missing_files", {"video": "x" * 300}, None),
    ("missing_files", {"masks": "gone.json"}, None),
    ("unreadable_pictures", {}, lambda root: cut(root / "clips" / "a.mp4")),
    ("unreadable_pictures", {"video": None, "masks": None, "frames": "m.json"}, None),
    ("unreadable_audio", {"audio": "m.json"}, None),
    ("unusable_masks", {"masks": "clips/a.mp4"}, None),
    ("unusable_masks", {}, lambda root: (root / "m.json").write_text("{")),
    ("unusable_masks", {"masks": ["m.png", "m.png"]}, save_other_mask),
    ("unlabelled_rows", {"masks": ""}, None),
    ("partial_masks", {}, lambda root: (root / "m.json").write_text(json.dumps(coco({0.0: column(3)})))),
]


def test_clean_clips_have_no_problem(root: Path) -> None:
    rows = [{**ROW, "masks": "m.json"}, {**ROW, "masks": "empty", "split": "test"}]
    report = examine_clips(write_manifest(root / "clips.csv", rows))
    assert report.problems == () and not report.has_errors
    assert (report.rows, report.null_rows, report.unlabelled_rows, report.clips_checked) == (2, 1, 0, 1)
    assert list(report.splits) == ["train", "test"]


@pytest.mark.parametrize(("kind", "change", "break_it"), BREAKS)
def test_one_kind_of_damage_is_counted_by_rows(
    root: Path, kind: str, change: dict[str, Any], break_it: Callable[[Path], object] | None
) -> None:
    if break_it is not None:
        break_it(root)
    good = {"video": "clips/silent.mp4", "reference": "x", "masks": "empty"}
    broken = {**ROW, "masks": "m.json", **change}
    report = examine_clips(write_manifest(root / "clips.jsonl", [good, broken, broken]), num_workers=2)
    assert [(problem.kind, problem.count) for problem in report.problems] == [(kind, 2)]
    assert "clips.jsonl:2" in report.problems[0].first
    assert report.has_errors == CLIP_PROBLEMS[kind].is_error
    assert json.loads(json.dumps(report.to_dict()))["problems"][0]["advice"]


def test_every_kind_of_problem_is_broken_by_a_test() -> None:
    assert {kind for kind, _, _ in BREAKS} | {"odd_audio"} == set(CLIP_PROBLEMS)


def test_masks_and_sound_of_one_row_are_told_both(root: Path) -> None:
    write_manifest(root / "clips.jsonl", [{**ROW, "audio": "m.json", "masks": "clips/a.mp4"}])
    assert {problem.kind for problem in examine_clips(root).problems} == {"unreadable_audio", "unusable_masks"}


def test_the_command_reads_manifests(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(root / "clips.csv", [{"video": "clips/a.mp4", "caption": "x", "masks": "m.json"}])
    assert main(["doctor", str(root / "clips.csv"), "--columns", "reference=caption", "--fps", "1"]) == 0
    assert "1 rows, 0 of them null references; 0 have no masks" in capsys.readouterr().out
    assert main(["doctor", str(root / "clips.csv"), "--json"]) == 1
    assert "columns: {reference: caption}" in json.loads(capsys.readouterr().out)["problems"][0]["first"]
    assert main(["doctor", str(root), "--columns", "reference=caption", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"] == {"train": {"rows": 1, "media_ids": 1, "null_rows": 0}}
    assert main(["doctor", str(root), "--columns", "reference=caption", "--split", "val"]) == 2


def test_an_unknown_split_is_an_error(root: Path) -> None:
    write_manifest(root / "clips.csv", [ROW])
    with pytest.raises(DatasetError, match=r"no split\(s\) \['val'\]: expected some of \['train'\]"):
        examine_clips(root, splits=["val"])
