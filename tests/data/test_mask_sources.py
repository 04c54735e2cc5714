"""Masks of own clips: COCO JSON of several tools, PNG files, npz; which mask belongs to which frame."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from aurora_rl.data.clips import load_clips
from aurora_rl.data.files import DatasetError
from aurora_rl.data.mask_sources import Timeline
from aurora_rl.data.media import load_clip
from aurora_rl.data.sample import AVSample
from aurora_rl.inference.answer_files import _MaskFiles
from tests.data.own_clips import HEIGHT, PICTURES, ROW, WIDTH, coco, column, link_clips, write_clips, write_manifest


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("own"))


@pytest.fixture
def root(clips: Path, tmp_path: Path) -> Path:
    return link_clips(clips, tmp_path / "root")


def sample_of(root: Path, masks: Any = "m.json", *, num_frames: int | None = 10, **row: Any) -> AVSample:
    write_manifest(root / "manifest.jsonl", [{**ROW, "masks": masks, **row}])
    [sample] = load_clips(root, "train", num_frames=num_frames, mask_cache=root / "cache")
    return sample


def marked(sample: AVSample) -> list[list[int] | None]:
    """The columns that each frame's mask marks; None for a frame without annotation."""
    clip = load_clip(sample)
    assert clip.gt_masks is not None
    found = iter(clip.gt_masks)
    annotated = range(len(clip.frames)) if clip.annotated_frames is None else clip.annotated_frames
    masks = {frame: next(found) for frame in annotated}
    return [
        np.flatnonzero(masks[frame].any(axis=0)).tolist() if frame in masks else None
        for frame in range(len(clip.frames))
    ]


def write_coco(root: Path, masks: Mapping[Any, np.ndarray | None], **options: Any) -> None:
    (root / "m.json").write_text(json.dumps(coco(masks, **options)))


# Times


def test_a_frame_takes_the_mask_within_half_a_step(root: Path) -> None:
    write_coco(root, {0.24: column(1), 0.8: column(2), 1.5: None})
    # Frames at 0, 0.5, 1 and 1.5 s: 0.24 is nearest to 0, nothing to 0.5 but 0.24 is 0.26 away.
    assert marked(sample_of(root, fps=2)) == [[1], None, [2], []]


def test_a_mask_half_a_step_away_counts_and_the_earlier_of_two_wins(root: Path) -> None:
    write_coco(root, {0.25: column(1), 0.75: column(2)})
    assert marked(sample_of(root, fps=2)) == [[1], [1], [2], None]


def test_the_mask_of_the_picture_on_screen_is_better_than_a_nearer_one(root: Path) -> None:
    write_coco(root, {0: column(0), 1: column(1), 2: column(2)}, key="frame_index")
    # Pictures at 0, 0.1, 0.9 s ...: at 2/3 s picture 1 is on screen, although picture 2 is nearer.
    assert marked(sample_of(root, video="clips/varying.mkv", fps=1.5, num_frames=2))[0] == [0]
    timeline = Timeline((2 / 3,), (2 / 3,), (0.0, 0.1, 0.9), 2.0)
    assert timeline.choose([0.0, 0.1, 0.9]) == [1]


def test_native_frame_indices_are_those_of_the_shown_pictures(root: Path) -> None:
    write_coco(root, {number: column(number) for number in range(20)}, key="frame_index")
    assert marked(sample_of(root, fps=3)) == [[0], [3], [6], [10], [13], [16]]
    assert marked(sample_of(root, fps=3, num_frames=2)) == [[0], [16]]


def test_masks_at_other_times_alone_are_an_error(root: Path) -> None:
    write_coco(root, {300: column(1)})
    with pytest.raises(DatasetError, match=r"clip '0' .*none lies within 0.25 s of a sampled frame \(0, 0.5, 1, 1.5"):
        sample_of(root, fps=2)


# COCO


def test_masks_of_segment_are_read_as_they_are_written(root: Path) -> None:
    references = [SimpleNamespace(reference=name) for name in ("the dog", "The  Thing")]
    answer: Any = SimpleNamespace(footage=SimpleNamespace(own_size=(HEIGHT, WIDTH)), references=references)
    written = _MaskFiles(root, answer)
    written.write(0, 0.0, np.stack([column(1), column(3)]))
    written.write(1, 1.0, np.stack([column(2), np.zeros((HEIGHT, WIDTH), dtype=bool)]))
    written.finish()
    assert marked(sample_of(root, "masks.json")) == [[3], []]  # the category is named as the reference
    assert marked(sample_of(root, "masks.json", reference="the dog")) == [[1], [2]]
    assert marked(sample_of(root, "masks/1")) == [[3], []]


def test_the_category_is_chosen_by_the_rules(root: Path) -> None:
    write_coco(root, {0.0: column(3)}, categories=("person", "dog"), used=1)
    assert marked(sample_of(root, category="dog"))[0] == [3]
    assert marked(sample_of(root, category="person"))[0] == []
    assert marked(sample_of(root, category="animal", masks_category="dog"))[0] == [3]
    assert marked(sample_of(root, reference="Dog", category="person"))[0] == [3]
    for row in ({}, {"category": "animal"}, {"masks_category": "cat"}):
        with pytest.raises(DatasetError, match=r"has the categories \['dog', 'person'\].*column masks_category"):
            sample_of(root, **row)
    write_coco(root, {0.0: column(3)}, categories=("anything",))
    assert marked(sample_of(root, category="dog"))[0] == [3]


def test_masks_of_one_category_are_joined(root: Path) -> None:
    record = coco({0.0: column(3), 1.0: column(5)})
    record["annotations"][1]["image_id"] = 0
    (root / "m.json").write_text(json.dumps(record))
    assert marked(sample_of(root)) == [[3, 5], []]


def test_uncompressed_run_lengths_and_polygons_are_read(root: Path) -> None:
    record = coco({0.0: column(3), 1.0: column(5)})
    record["annotations"][0]["segmentation"] = {
        "size": [HEIGHT, WIDTH], "counts": [3 * HEIGHT, HEIGHT, (WIDTH - 4) * HEIGHT]
    }  # fmt: skip
    record["annotations"][1]["segmentation"] = polygons = [[5, 5, 10, 5, 10, 20, 5, 20], [20, 0, 22, 0, 22, 9]]
    (root / "m.json").write_text(json.dumps(record))
    assert marked(sample_of(root))[0] == [3]
    merged = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, HEIGHT, WIDTH)))
    truth = load_clip(sample_of(root)).gt_masks
    assert truth is not None and np.array_equal(truth[1], merged.astype(bool)) and merged.sum() > 75


def test_images_of_frames_are_found_by_their_file_names(root: Path) -> None:
    for folder in ("one", "two"):
        (root / folder).mkdir()
        for number in range(3):
            Image.fromarray(PICTURES[number]).save(root / folder / f"{number}.png")
    masks = {"two/0.png": column(9), "one/2.png": column(2), "one/0.png": None, "three/1.png": column(8)}
    write_coco(root, masks, key="file_name")
    assert marked(sample_of(root, video=None, frames="one")) == [[], None, [2]]
    assert marked(sample_of(root, video=None, frames=["two/0.png"])) == [[9]]
    with pytest.raises(DatasetError, match=r"no image has the file_name of a frame, such as 'two/1.png'"):
        sample_of(root, video=None, frames=["two/1.png"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: [], "expected a COCO file"),
        (lambda r: r | {"images": []}, 'it has no images: list .* "empty"'),
        (lambda r: r | {"images": [{"id": 0}]}, "image 0 does not say when .* `time` in seconds or a `frame_index`"),
        (lambda r: r | {"images": [{"id": 0, "time": "soon"}]}, "has the time 'soon': expected seconds"),
        (lambda r: r | {"images": [{"id": 0, "time": float("nan")}]}, "has the time 'nan'"),
        (lambda r: r | {"images": [{"id": 0, "frame_index": 20}]}, "frame_index is 20, but the clip has .* 0 to 19"),
        (lambda r: r | {"images": [{"id": 0, "frame_index": -1}]}, "frame_index is -1"),
        (lambda r: r | {"images": [{"id": 0, "time": 0}, {"id": 1, "time": 0}]}, "images 0 and 1 have one time"),
        (lambda r: r | {"images": [{"id": [], "time": 0}]}, "an image's id is"),
        (lambda r: r | {"images": [{"id": 7, "time": 0}]}, "annotation 0 has the image_id 0, which no image has"),
        (lambda r: r | {"annotations": [7]}, "annotations holds '7'"),
        (lambda r: r | {"categories": 7}, "categories is no list"),
        (lambda r: segmentation(r, None), "has no segmentation: .*a box is no mask"),
        (lambda r: segmentation(r, [[1, 2, 3]]), "polygon that is no list of x, y"),
        (lambda r: segmentation(r, [[0, 0, 1e9, 0, 1e9, 1e9]]), "polygon far outside its 48x32 pixels"),
        (lambda r: segmentation(r, [[0, 0, float("nan"), 0, 1, 1]]), "polygon far outside"),
        (
            lambda r: segmentation(r, {"size": [5, 5], "counts": [25]}),
            r"the size \[5, 5\] \(height, width\), expect",
        ),
        (lambda r: segmentation(r, {"size": [HEIGHT, WIDTH], "counts": [3]}), "do not add up"),
        (lambda r: segmentation(r, {"size": [HEIGHT, WIDTH], "counts": "\x00"}), "run lengths hold"),
    ],
)
def test_a_damaged_coco_file_is_told_with_row_and_file(root: Path, change: Any, message: str) -> None:
    (root / "m.json").write_text(json.dumps(change(coco({0.0: column(3)}))))
    with pytest.raises(DatasetError, match=message) as error:
        sample_of(root)
    assert "clip '0' (row 0, manifest.jsonl:1)" in str(error.value) and "m.json" in str(error.value)


def segmentation(record: dict[str, Any], value: Any) -> dict[str, Any]:
    record["annotations"][0]["segmentation"] = value
    return record


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_json_is_told(root: Path, content: bytes) -> None:
    (root / "m.json").write_bytes(content)
    with pytest.raises(DatasetError, match="the masks .*m.json"):
        sample_of(root)


def test_masks_stand_upright_as_the_frames_do(root: Path) -> None:
    (root / "m.json").write_text(json.dumps(coco({0.0: column(3, WIDTH, HEIGHT)})))
    assert marked(sample_of(root, video="clips/rotated.mp4"))[0] == [3]
    write_coco(root, {0.0: column(3)})
    with pytest.raises(DatasetError, match=r"has the size \[32, 48\].*expected \[48, 32\]"):
        sample_of(root, video="clips/rotated.mp4")


# PNG files


def write_pngs(root: Path, numbers: list[int], folder: str = "masks", pattern: str = "{:04d}.png") -> list[str]:
    (root / folder).mkdir()
    names = [f"{folder}/{pattern.format(number)}" for number in numbers]
    for number, name in zip(numbers, names, strict=True):
        Image.fromarray(column(number).astype(np.uint8) * 255).save(root / name)
    return names


def test_as_many_pngs_as_sampled_frames_or_as_pictures_fit(root: Path) -> None:
    names = write_pngs(root, list(range(20)))
    assert marked(sample_of(root, "masks", fps=2)) == [[0], [5], [10], [15]]
    assert marked(sample_of(root, names[:4], fps=2)) == [[0], [1], [2], [3]]
    assert marked(sample_of(root, [names[0], None, "", names[3]], fps=2)) == [[0], None, None, [3]]
    assert marked(sample_of(root, names[:4], fps=2, num_frames=2)) == [[0], [3]]
    assert marked(sample_of(root, names[7], video="clips/still.mp4")) == [[7]]
    with pytest.raises(DatasetError, match="there are 3 masks for 4 sampled frames of 20 pictures: give one for each"):
        sample_of(root, names[:3], fps=2)
    assert sample_of(root, [None, None], fps=2).has_gt_masks is False


def test_pngs_named_as_the_frames_are_theirs(root: Path) -> None:
    (root / "frames").mkdir()
    for number in range(5):
        Image.fromarray(PICTURES[number]).save(root / "frames" / f"{number:04d}.jpg")
    write_pngs(root, [1, 4])
    assert marked(sample_of(root, "masks", video=None, frames="frames")) == [None, [1], None, None, [4]]


def test_other_files_are_no_masks(root: Path) -> None:
    (root / "masks").mkdir()
    problems = {"masks": "holds no pictures", "clips/a.mp4": "expected COCO JSON", "../m.json": "leads out"}
    for masks, message in problems.items():
        with pytest.raises(DatasetError, match=message):
            sample_of(root, masks)
    with pytest.raises(DatasetError, match="list of masks has 'clips/a.mp4': expected PNG"):
        sample_of(root, ["clips/a.mp4", None])
    with pytest.raises(DatasetError, match="has masks, but no frames"):
        sample_of(root, ["x.png"], video=None, audio="clips/a.mp4")


# npz


def test_npz_masks_are_found_by_count_times_and_index(root: Path) -> None:
    masks = np.stack([column(number) for number in range(20)])
    for name, arrays, expected in (
        ("a", {"masks": masks}, [[0], [10]]),
        ("b", {"anything": masks[:2].astype(np.uint8) * 255}, [[0], [1]]),
        ("c", {"masks": masks[:2], "times": np.array([1.1, 30.0])}, [None, [0]]),
        ("d", {"masks": masks[:2], "frame_index": np.array([10, 3])}, [[1], [0]]),
    ):
        np.savez(root / f"{name}.npz", **arrays)
        assert marked(sample_of(root, f"{name}.npz")) == expected, name


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"masks": np.zeros((2, HEIGHT, WIDTH), np.float32)}, "is float32 .*expected bool or whole numbers"),
        ({"masks": np.zeros((2, 5, 5), bool)}, "masks of 5x5 pixels for frames of 48x32"),
        ({"masks": np.zeros((HEIGHT, WIDTH), bool)}, r"of shape \(32, 48\): expected"),
        ({"masks": np.array([{}], dtype=object)}, "is object"),
        ({"a": np.zeros(1), "b": np.zeros(1)}, r"holds the arrays \['a', 'b'\]: expected one named masks"),
        ({"masks": np.zeros((3, HEIGHT, WIDTH), bool)}, "there are 3 masks for 2 sampled frames"),
        (
            {"masks": np.zeros((2, HEIGHT, WIDTH), bool), "times": np.zeros(3)},
            "one number for each of 2 masks",
        ),
        ({"masks": np.zeros((1, HEIGHT, WIDTH), bool), "times": np.array([np.nan])}, "not finite"),
    ],
)
def test_a_damaged_npz_is_told_with_row_and_file(root: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(root / "m.npz", **arrays)
    with pytest.raises(DatasetError, match=message) as error:
        sample_of(root, "m.npz")
    assert "clip '0'" in str(error.value) and "m.npz" in str(error.value)


def test_a_file_that_is_no_npz_is_told(root: Path) -> None:
    (root / "m.npz").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(DatasetError, match="m.npz: .*np.savez"):
        sample_of(root, "m.npz")


def test_equal_masks_share_a_file(root: Path) -> None:
    np.savez(root / "m.npz", masks=np.stack([column(1)] * 2))
    write_coco(root, {0.0: column(1), 1.0: column(1)})
    assert sample_of(root, "m.npz").mask_paths == sample_of(root, "m.json").mask_paths
    assert len(set(sample_of(root).mask_paths)) == 1


def test_a_file_is_read_again_only_if_it_or_the_question_changes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco(root, {0.0: column(1), 1.0: None}, categories=("person", "dog"), used=1)
    first = sample_of(root, category="dog")
    with monkeypatch.context() as patch:
        patch.setattr("aurora_rl.data.mask_sources._read_coco", lambda *args: pytest.fail("it is known"))
        assert sample_of(root, category="dog").mask_paths == first.mask_paths
    assert (
        marked(sample_of(root, category="person"))[0] == []
        and marked(sample_of(root, category="dog", fps=2))[1] is None
    )
    for file in (root / "cache").rglob("*.json"):
        file.write_text('["../../x"]')
    Path(first.mask_paths[0]).unlink()
    assert marked(sample_of(root, category="dog")) == [[1], []]


def test_masks_survive_a_changed_file(root: Path) -> None:
    write_coco(root, {0.0: column(1)})
    first = sample_of(root)
    write_coco(root, {0.0: column(22)})
    os.utime(root / "m.json", ns=(1, 1))
    assert marked(sample_of(root))[0] == [22] and marked(first)[0] == [1]
    assert dataclasses.replace(first, mask_paths=()).has_gt_masks is False
