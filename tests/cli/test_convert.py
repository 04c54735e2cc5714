"""Benchmarks, COCO files and DAVIS's folders as manifests and tables: what comes back is what was there."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.cli import main
from aurora_rl.data.media import load_clip
from aurora_rl.data.run_lengths import encode_masks
from aurora_rl.data.sample import AVSample
from tests.data.odd_files import tone, write_film


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AURORA_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def convert(tmp_path: Path, form: str, root: Path, *options: str, to: str = "manifest") -> Path:
    out = tmp_path / f"converted-{to}"
    words = ["convert", "--from", form, "--data_root", str(root), "--to", to, "--output_dir", str(out), *options]
    assert main(words) == 0
    return out


def clips(root: Path, split: str = "train", **options: Any) -> list[AVSample]:
    return load_split(DataArguments(data_root=str(root), benchmark="clips", num_frames=None, **options), split)


def assert_same_clips(first: list[AVSample], second: list[AVSample]) -> None:
    for one, other in zip(first, second, strict=True):
        clip, again = load_clip(one), load_clip(other)
        for name in ("frames", "waveform", "gt_masks"):
            a, b = getattr(clip, name), getattr(again, name)
            assert (a is None) == (b is None) and (a is None or np.array_equal(a, b))
        assert clip.annotated_frames == again.annotated_frames


WORDS = ("category", "reference", "fps", "reference_type", "chain", "seen", "heard", "split", "answer", "choices")


def test_ref_avs_comes_back_from_a_manifest(tiny_benchmark: Path, tmp_path: Path) -> None:
    out = convert(tmp_path, "ref_avs", tiny_benchmark, "--fps", "2", "--chains", "chains.jsonl", "--links")
    args = DataArguments(data_root=str(tiny_benchmark), fps=2.0, num_frames=None, chains="chains.jsonl")
    for split in ("train", "val", "test_s", "test_n"):
        original, again = load_split(args, split), clips(out, split)
        for name in WORDS:
            assert [getattr(row, name) for row in again] == [getattr(row, name) for row in original]
        assert_same_clips(original, again)
    before = {path.relative_to(tiny_benchmark) for path in tiny_benchmark.rglob("*.jpg")}
    assert {path.relative_to(out) for path in out.rglob("*.jpg")} == before
    assert os.stat(next(out.rglob("*.jpg"))).st_nlink > 1
    assert len({row.media_id for row in clips(out)}) == len({row.media_id for row in load_split(args, "train")})


def test_tables_and_questions_come_back_too(tiny_benchmark: Path, tmp_path: Path) -> None:
    out = convert(tmp_path, "questions", tiny_benchmark, "--fps", "2", "--split", "test_s")
    args = DataArguments(data_root=str(tiny_benchmark), benchmark="questions", fps=2.0, num_frames=None)
    original, again = load_split(args, "test_s"), clips(out, "test_s")
    assert [[getattr(row, name) for name in WORDS] for row in again] == [
        [getattr(row, name) for name in WORDS] for row in original
    ]
    assert_same_clips(original, again)
    tables = convert(tmp_path, "ref_avs", tiny_benchmark, "--fps", "2", "--split", "val", "--license", "mit", to="hf")
    read = DataArguments(data_root=str(tables), benchmark="hf_dataset", media_cache=str(tmp_path / "media"))
    assert_same_clips(load_split(dataclasses.replace(args, benchmark="ref_avs"), "val"), load_split(read, "val"))
    assert_same_clips(load_split(read, "val"), clips(tables, "val"))  # they are own clips as well
    card = (tables / "README.md").read_text()
    assert "license: mit" in card and "benchmark `ref_avs`" in card


def test_a_manifest_in_the_benchmarks_own_folder_copies_nothing(tmp_path: Path, capsys: Any) -> None:
    root = davis(tmp_path)
    before = sorted(root.rglob("*"))
    words = ["convert", "--from", "davis", "--data_root", str(root), "--to", "manifest", "--output_dir", str(root)]
    assert main(words) == 2  # the masks of single objects lie in the cache
    assert "lies outside" in capsys.readouterr().err
    assert main([*words, "--mask_cache", str(root / "masks")]) == 0
    assert set(root.rglob("*.jpg")) == {path for path in before if path.suffix == ".jpg"}
    assert len(clips(root)) == 2
    assert main([*words, "--mask_cache", str(root / "masks")]) == 2
    assert "manifest.jsonl is there already" in capsys.readouterr().err


# ---- DAVIS ------------------------------------------------------------------------------------------------------


def davis(tmp_path: Path) -> Path:
    """Three frames of one video with two objects; the second frame is not annotated."""
    root = tmp_path / "DAVIS"
    for folder in ("JPEGImages", "Annotations"):
        (root / folder / "480p" / "dogs").mkdir(parents=True)
    for index in range(3):
        grey = np.full((10, 14, 3), 60 * index, dtype=np.uint8)
        Image.fromarray(grey).save(root / "JPEGImages" / "480p" / "dogs" / f"{index:05d}.jpg")
        indices = np.zeros((10, 14), dtype=np.uint8)
        indices[index : index + 3, :4], indices[:, 10:], indices[9, 9] = 1, 2, 255
        mask = Image.fromarray(indices, mode="P")
        mask.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0] + [99] * 759)
        if index != 1:
            mask.save(root / "Annotations" / "480p" / "dogs" / f"{index:05d}.png")
    return root


def test_objects_of_davis_are_rows_with_their_sentences(tmp_path: Path) -> None:
    root = davis(tmp_path)
    sentences = tmp_path / "texts.txt"
    sentences.write_text('\ufeffdogs 1 "the dog on the left"\r\ndogs 1 "a dog that runs"\r\ndogs 2 "the fence"\r\n')
    out = convert(tmp_path, "davis", root, "--sentences", str(sentences))
    rows = clips(out)
    assert [row.reference for row in rows] == ["the dog on the left", "a dog that runs", "the fence"]
    assert {row.fps for row in rows} == {24.0} and rows[0].annotated_frames == (0, 2)
    masks = [load_clip(row).gt_masks for row in rows]
    assert np.array_equal(masks[0], masks[1]) and masks[0][1, 2:5, :4].all() and masks[0].sum() == 24
    assert masks[2][:, :, 10:].all() and masks[2].sum() == 80


# ---- COCO -------------------------------------------------------------------------------------------------------


def pictures(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(np.full((8, 12, 3), 20 * index, dtype=np.uint8)).save(folder / f"{index}.png")
    return [f"{index}.png" for index in range(count)]


def rle(left: int, right: int) -> Any:
    mask = np.zeros((1, 8, 12), dtype=bool)
    mask[:, :, left:right] = True
    return encode_masks(mask)[0]


def test_pictures_of_coco_are_rows_of_a_category(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": name} for i, name in enumerate(pictures(tmp_path / "source", 2))]
    square = [[0, 0, 4, 0, 4, 8, 0, 8]]
    annotations = [
        {"id": 1, "image_id": 0, "category_id": 3, "segmentation": rle(0, 2)},
        {"id": 2, "image_id": 0, "category_id": 3, "segmentation": rle(6, 8)},
        {"id": 3, "image_id": 1, "category_id": 4, "segmentation": square, "caption": "the left half"},
    ]
    categories = [{"id": 3, "name": "cup"}, {"id": 4, "name": "drum"}]
    file = tmp_path / "source" / "instances.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    rows = clips(convert(tmp_path, "coco", file, "--split", "val"), "val")
    assert [(row.reference, row.category) for row in rows] == [("cup", "cup"), ("the left half", "drum")]
    masks = [load_clip(row).gt_masks for row in rows]
    assert masks[0][0, 0].nonzero()[0].tolist() == [0, 1, 6, 7] and masks[1][0, 0].nonzero()[0].tolist() == [0, 1, 2, 3]


def test_videos_of_coco_are_rows_of_an_object(tmp_path: Path, capsys: Any) -> None:
    names = pictures(tmp_path / "JPEGImages" / "a", 3)
    video = {"id": 7, "file_names": [f"a/{name}" for name in names], "height": 8, "width": 12}
    each = {"id": 1, "video_id": 7, "category_id": 1, "segmentations": [rle(0, 3), None, rle(2, 5)]}
    record = {"videos": [video], "annotations": [each], "categories": [{"id": 1, "name": "fish"}]}
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(record))
    frames = ("--frames", str(tmp_path / "JPEGImages"), "--fps", "6")
    (row,) = clips(convert(tmp_path, "coco", file, *frames))
    assert (row.reference, row.fps, row.num_frames) == ("fish", 6.0, 3)
    assert load_clip(row).gt_masks.sum(axis=(1, 2)).tolist() == [24, 0, 24]
    video["file_names"][0] = "../secret.png"
    file.write_text(json.dumps(record))
    words = ["convert", "--from", "coco", "--data_root", str(file), "--to", "manifest", *frames]
    assert main([*words, "--output_dir", str(tmp_path / "other")]) == 2
    assert "leads out of its folder" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_masks_of_segment_are_rows_on_their_video(tmp_path: Path) -> None:
    frames = [np.full((8, 12, 3), 30 * i, dtype=np.uint8) for i in range(8)]
    write_film(tmp_path / "clip.mp4", frames=frames, times=[i / 4 for i in range(8)], sounds=[[(0.0, tone(2))]])
    answer = tmp_path / "answer"
    answer.mkdir()
    images = [{"id": i, "file_name": f"{i:06d}.png", "time": i * 0.5, "height": 8, "width": 12} for i in range(4)]
    annotations = [{"id": 1, "image_id": 2, "category_id": 0, "segmentation": rle(0, 6)}]
    categories = [{"id": 0, "name": "the cup"}, {"id": 1, "name": "what sounds"}]
    record = {"images": images, "annotations": annotations, "categories": categories}
    (answer / "masks.json").write_text(json.dumps(record))
    (answer / "answer.json").write_text(json.dumps({"clip": "clip.mp4"}))
    options = ("--frames", str(tmp_path), "--fps", "2")
    rows = clips(convert(tmp_path, "coco", answer / "masks.json", *options))
    assert [row.reference for row in rows] == ["the cup", "what sounds"]
    assert [load_clip(row).gt_masks.sum(axis=(1, 2)).tolist() for row in rows] == [[0, 0, 48, 0], [0, 0, 0, 0]]
    tables = convert(tmp_path, "coco", answer / "masks.json", *options, to="hf")
    read = DataArguments(data_root=str(tables), benchmark="hf_dataset", media_cache=str(tmp_path / "media"))
    assert load_clip(rows[0]).waveform is not None
    assert_same_clips(load_split(read, "train"), rows)  # sampled frames and what is heard, without loss


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "refavs", "--to", "hf"], "--from is 'refavs': choose from ref_avs"),
        (["--from", "ref_avs", "--to", "hf", "--data_root", "gone"], "--data_root gone does not exist"),
        (["--from", "ref_avs", "--to", "manifest", "--title", "T"], "--title is of --to hf"),
        (["--from", "ref_avs", "--to", "hf", "--links"], "--links is of --to manifest"),
        (["--from", "ref_avs", "--to", "hf", "--sentences", "s.txt"], "--sentences is of --from davis"),
        (["--from", "mine.py:load", "--to", "hf"], "the loader file mine.py does not exist"),
        (["--from", "ref_avs", "--to", "manifest", "--split", "trian"], "trian"),
    ],
)
def test_what_makes_no_sense_is_told_and_nothing_is_written(
    tiny_benchmark: Path, tmp_path: Path, capsys: Any, words: list[str], message: str
) -> None:
    given = [] if "--data_root" in words else ["--data_root", str(tiny_benchmark)]
    assert main(["convert", *words, *given, "--output_dir", str(tmp_path / "new")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "new").exists()
