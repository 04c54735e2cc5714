"""Own clips as a data set of `datasets`: in the forms in which people save them, and what is refused in them."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import find_train_categories, list_test_splits, load_split
from aurora_rl.cli import main
from aurora_rl.data import clip_tables
from aurora_rl.data.clip_sources import is_hub_name, is_table
from aurora_rl.data.files import DatasetError
from aurora_rl.data.media import load_clip


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AURORA_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def picture(path: Path, grey: int, *, mask: bool = False) -> str:
    pixels = np.full((8, 12), grey, dtype=np.uint8)
    if mask:
        pixels[:, :grey] = 255
        pixels[:, grey:] = 0
    Image.fromarray(pixels if mask else np.stack([pixels] * 3, axis=-1)).save(path)
    return str(path)


@pytest.fixture
def columns(tmp_path: Path, film: Callable[..., Path]) -> dict[str, list]:
    """Two rows on pictures and two on a video, with a mask of each frame; files outside any data set's folder."""
    source = tmp_path / "source"
    source.mkdir()
    frames = [[picture(source / f"{row}-{i}.png", 50 * row + 10 * i) for i in range(2)] for row in range(2)]
    masks = [[picture(source / f"m{row}-{i}.png", 3 + row, mask=True) for i in range(2)] for row in range(2)]
    shades = [np.full((16, 16, 3), 30 * i, dtype=np.uint8) for i in range(8)]
    video = str(film(shades, waveform=np.sin(np.arange(32_000) / 20), name="source/clip.mp4"))
    return {
        "frames": [*frames, None, None],
        "video": [None, None, video, video],
        "masks": [*masks, None, None],
        "reference": ["the cup", "the drum", "what sounds", "nothing at all"],
        "category": ["cup", "drum", "null", "null"],
        "weight": [1, 2, 3, 4],
    }


def features(**changes: Any) -> datasets.Features:
    return datasets.Features(
        {
            "frames": datasets.List(datasets.Image()),
            "video": datasets.Video(),
            "masks": datasets.List(datasets.Image()),
            "reference": datasets.Value("string"),
            "category": datasets.ClassLabel(names=["cup", "drum", "null"]),
            "weight": datasets.Value("int64"),
            **changes,
        }
    )


def save(form: str, columns: dict[str, list], folder: Path) -> Path:
    """Save a data set in one of the forms that people use."""
    table = datasets.Dataset.from_dict(columns, features=features())
    if form == "save_to_disk":
        table.save_to_disk(folder)
    if form == "save_to_disk, splits":
        datasets.DatasetDict({"train": table.select([0, 2]), "test": table.select([1, 3])}).save_to_disk(folder)
    embedded = table.with_format("arrow").map(datasets.table.embed_table_storage, batched=True)
    if form == "repository of the hub":
        (folder / "data").mkdir(parents=True)
        embedded.select([0, 2]).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
        embedded.select([1, 3]).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
        (folder / "README.md").write_text("---\nlicense: mit\n---\n# Clips\n")
    if form == "Parquet of any name":
        folder.mkdir()
        embedded.to_parquet(folder / "my clips, final (2).parquet")
        return folder / "my clips, final (2).parquet"
    return folder


FORMS = ("save_to_disk", "save_to_disk, splits", "repository of the hub", "Parquet of any name")


@pytest.mark.parametrize("form", FORMS)
def test_the_same_rows_come_of_every_form(form: str, columns: dict[str, list], tmp_path: Path) -> None:
    root = save(form, columns, tmp_path / "saved")
    for path in (tmp_path / "source").iterdir():
        path.rename(path.with_suffix(".moved"))  # all media are in the tables
    args = DataArguments(data_root=str(root), benchmark="clips", fps=4.0, num_frames=4)
    assert is_table(root) and find_train_categories(args) <= {"cup", "drum"}
    rows = load_split(args, "train")
    if form in ("save_to_disk, splits", "repository of the hub"):
        assert list_test_splits(args) == ["test"]
        test = load_split(args, "test")
        rows = [rows[0], test[0], rows[1], test[1]]
    assert [row.reference for row in rows] == columns["reference"]
    assert [row.category for row in rows] == columns["category"] and rows[1].extra_columns == {"weight": 2}
    clips = [load_clip(row) for row in rows]
    for number, clip in enumerate(clips[:2]):
        assert [int(frame[0, 0, 0]) for frame in clip.frames] == [50 * number, 50 * number + 10]
        assert (clip.gt_masks[:, :, : 3 + number]).all() and not clip.gt_masks[:, :, 3 + number :].any()
        assert clip.waveform is None
    assert clips[2].frames.shape == (4, 16, 16, 3) and clips[2].waveform is not None
    assert rows[2].media_id == rows[3].media_id and len({row.media_id for row in rows}) == 3
    assert not clips[2].gt_masks.any()


def test_media_are_unpacked_once(
    columns: dict[str, list], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = save("save_to_disk", columns, tmp_path / "saved")
    args = DataArguments(data_root=str(root), benchmark="clips", num_frames=2, media_cache=str(tmp_path / "media"))
    first = load_split(args, "train")
    monkeypatch.setattr(clip_tables, "_unpacked", lambda *_: pytest.fail("unpacked again"))
    assert load_split(args, "train") == first
    monkeypatch.undo()
    os.unlink(first[0].frame_paths[0])
    assert load_split(args, "train") == first and Path(first[0].frame_paths[0]).exists()
    assert {Path(row.media_files[0]).parents[1] for row in first} == {tmp_path / "media"}


def test_columns_are_renamed_and_bytes_need_no_feature(columns: dict[str, list], tmp_path: Path) -> None:
    content = Path(columns["frames"][0][0]).read_bytes()
    table = datasets.Dataset.from_dict({"picture": [content], "caption": ["the cup"], "part": ["val"]})
    table.to_parquet(tmp_path / "bytes.parquet")
    args = DataArguments(data_root=str(tmp_path / "bytes.parquet"), benchmark="clips")
    args = dataclasses.replace(args, columns={"frames": "picture", "reference": "caption", "split": "part"})
    (row,) = load_split(args, "val")
    assert Path(row.frame_paths[0]).read_bytes() == content and row.uid == "0"
    with pytest.raises(DatasetError, match="no rows of split 'train'|has no split 'train'|'train'"):
        load_split(args, "train")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"bytes": None, "path": "/etc/hostname"}, "row 0: frames names the file /etc/hostname outside"),
        ({"bytes": None, "path": "../source/0-0.png"}, "which leads out of its folder"),
        ({"bytes": None, "path": "aurora-media:aa/b.png"}, "which is no path"),
        ({"bytes": None, "path": "gone.png"}, "gone.png is missing"),
        ({"bytes": None, "path": None}, "neither video nor frames nor audio"),
    ],
)
def test_files_outside_the_data_set_are_never_read(columns: dict, tmp_path: Path, value: dict, message: str) -> None:
    struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    kinds = datasets.Features({"frames": struct, "reference": datasets.Value("string")})
    table = datasets.Dataset.from_dict({"frames": [value], "reference": ["it"]}, features=kinds)
    (tmp_path / "data").mkdir()
    table.to_parquet(tmp_path / "data" / "rows.parquet")
    args = DataArguments(data_root=str(tmp_path / "data" / "rows.parquet"), benchmark="clips")
    with pytest.raises(DatasetError, match=message):
        load_split(args, "train")


def test_a_file_beside_the_table_is_read_where_it_lies(columns: dict, tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"video": [columns["video"][2]], "reference": ["it"]})
    table = table.cast_column("video", datasets.Video())
    table.to_parquet(tmp_path / "source" / "rows.parquet")  # which keeps the absolute path
    args = DataArguments(data_root=str(tmp_path / "source" / "rows.parquet"), benchmark="clips", num_frames=2)
    assert load_split(args, "train")[0].video_path == columns["video"][2]


def test_a_data_set_that_is_none_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    args = DataArguments(data_root=str(tmp_path), benchmark="clips")
    with pytest.raises(DatasetError, match=f"datasets cannot open {tmp_path}: .* expected a folder of save_to_disk"):
        load_split(args, "train")


def test_a_manifest_stays_one_and_a_misspelt_folder_is_no_name_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("data")
    assert is_hub_name("someone/clips") and not is_hub_name("data/clips") and not is_hub_name("/someone/clips")
    (tmp_path / "clips.jsonl").write_text(json.dumps({"video": "a.mp4", "reference": "it"}))
    assert not is_table(tmp_path)
    datasets.Dataset.from_dict({"video": ["a.mp4"], "reference": ["it"]}).to_parquet(tmp_path / "data" / "rows.parquet")
    assert not is_table(tmp_path / "data") and not is_table(tmp_path / "data" / "rows.parquet")


def test_doctor_reads_tables_and_names_each_kind_of_damage(columns: dict, tmp_path: Path, capsys: Any) -> None:
    root = save("repository of the hub", columns, tmp_path / "saved")
    assert main(["doctor", str(root), "--num_frames", "any", "--fps", "4"]) == 0
    content = Path(columns["frames"][0][0]).read_bytes()
    broken = {
        "frames": [content, content[:40], None, content],
        "reference": ["it", "it", "it", None],
        "masks": ["empty"] * 4,
        "id": ["a", "b", "c", "a"],
    }
    datasets.Dataset.from_dict(broken).to_parquet(tmp_path / "broken.parquet")
    capsys.readouterr()
    assert main(["doctor", str(tmp_path / "broken.parquet"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert {problem["kind"]: problem["count"] for problem in report["problems"]} == {
        "malformed_rows": 2,
        "unreadable_pictures": 1,
    }
