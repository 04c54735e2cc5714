import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from pycocotools import mask as coco_mask

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.data.containers import MediaError
from aurora_rl.data.dataset import to_dataset
from aurora_rl.data.files import DatasetError
from aurora_rl.data.masks import write_mask
from aurora_rl.data.media import load_clip, read_masks
from aurora_rl.data.message_parts import MediaArguments, media_parts, reference_parts
from aurora_rl.data.omni_avs import load_omni_avs
from aurora_rl.data.sample import AVSample
from aurora_rl.data.splits import list_splits
from aurora_rl.export.manifest_folder import write_manifest
from aurora_rl.tasks.reference_segmentation import chain_file

WIDTH, HEIGHT, NUM_FRAMES, SECONDS = 6, 4, 7, 3.5
LEFT, MIDDLE = (0, 2), (1, 4)  # columns of the two objects; they overlap in column 1


def columns(start: int, end: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[:, start:end] = True
    return mask


def rle(start: int, end: int) -> dict[str, Any]:
    """COCO's compressed run lengths, as JSON has them."""
    packed = coco_mask.encode(np.asfortranarray(columns(start, end).astype(np.uint8)))
    return {"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode()}


def expression(exp_id: int, obj_id: list, expr_type: str = "text", **fields: Any) -> dict[str, Any]:
    return {
        "exp_id": exp_id,
        "video_name": "abc",
        "expr": f"reference {exp_id}",
        "obj_id": obj_id,
        "expr_type": expr_type,
        "expl": "",
        **fields,
    }


def write_expressions(root: Path, records: list[dict[str, Any]], split: str = "train") -> None:
    text = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (root / f"meta_expressions_{split}.jsonl").write_text(text + "\n", encoding="utf-8")


def write_videos(root: Path, **changes: Any) -> None:
    """One video of 7 frames: object 1 is out of view in the last, object 2 in the last two."""
    video = {
        "file_name": [f"{index:05d}.jpg" for index in range(NUM_FRAMES)],
        "duration": SECONDS,
        "mask_dict": {"1": [rle(*LEFT)] * 6 + [None], "2": [rle(*MIDDLE)] * 5 + [None, None]},
        **changes,
    }
    (root / "video_dict.json").write_text(json.dumps({"abc": video}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """References to one object, to two, to none, and one that is spoken."""
    root = tmp_path / "omni_avs"
    (root / "images" / "abc").mkdir(parents=True)
    for index in range(NUM_FRAMES):
        Image.new("RGB", (WIDTH, HEIGHT), (index * 20, 0, 0)).save(root / "images" / "abc" / f"{index:05d}.jpg")
    (root / "audios").mkdir()
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    soundfile.write(root / "audios" / "abc.mp3", tone, 16_000, format="MP3")
    write_videos(root)
    write_expressions(
        root, [expression(0, [1]), expression(1, ["1", "2"]), expression(2, []), expression(3, [1], "speech")]
    )
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "masks"


def expect_error(root: Path, cache: Path, *expected: str) -> None:
    with pytest.raises(DatasetError) as error:
        load_omni_avs(root, "train", mask_cache=cache)
    for text in expected:
        assert text in str(error.value)


# What a row becomes


def test_sound_is_mp3_and_frames_are_those_of_video_dict(root: Path, cache: Path) -> None:
    sample = load_omni_avs(root, "train", mask_cache=cache)[0]
    assert (sample.uid, sample.row, sample.media_id, sample.reference_type) == ("abc_0", 0, "abc", "text")
    assert (sample.reference, sample.fps) == ("reference 0", NUM_FRAMES / SECONDS)
    assert [Path(path).name for path in sample.frame_paths] == [f"{index:05d}.jpg" for index in range(NUM_FRAMES)]
    assert Path(sample.audio_path).name == "abc.mp3"
    assert 0.3 < np.abs(load_clip(sample).waveform).max() < 0.7


def test_object_out_of_view_has_an_empty_mask(root: Path, cache: Path) -> None:
    clip = load_clip(load_omni_avs(root, "train", mask_cache=cache)[0])
    assert np.array_equal(clip.gt_masks, np.stack([columns(*LEFT)] * 6 + [columns(0, 0)]))


def test_several_objects_are_one_mask(root: Path, cache: Path) -> None:
    """Columns 0-1 and 1-3 join to 0-3; then only the first object is in view, then none."""
    clip = load_clip(load_omni_avs(root, "train", mask_cache=cache)[1])
    assert np.array_equal(clip.gt_masks, np.stack([columns(0, 4)] * 5 + [columns(0, 2), columns(0, 0)]))


def test_reference_to_no_object_is_null(root: Path, cache: Path) -> None:
    sample = load_omni_avs(root, "train", mask_cache=cache)[2]
    assert sample.is_null and sample.mask_paths == ()
    clip = load_clip(sample)
    assert clip.gt_masks.shape == (NUM_FRAMES, HEIGHT, WIDTH) and not clip.gt_masks.any()


def test_references_beyond_text_are_left_out_and_counted(
    root: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert [sample.row for sample in load_omni_avs(root, "train", mask_cache=cache)] == [0, 1, 2]
    assert "more than text: {'speech': 1}" in caplog.text
    write_expressions(root, [expression(0, [1], "text_image")])
    expect_error(root, cache, "no reference of expr_type 'text', only {'text_image': 1}")


def write_referrings(root: Path) -> list[dict[str, Any]]:
    """Write a reference that is spoken and points to a picture, and one in words that points to a sound."""
    for folder in ("speeches", "sounds", "images"):
        (root / "referrings" / f"referring_{folder}").mkdir(parents=True)
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    for name in ("referring_speeches/a.wav", "referring_sounds/b.wav"):
        soundfile.write(root / "referrings" / name, tone, 16_000)
    Image.new("RGB", (8, 8), (200, 0, 0)).save(root / "referrings" / "referring_images" / "c.jpg")
    files = {"referring_speech": "a.wav", "referring_sound": None, "referring_image": "c.jpg"}
    spoken = expression(0, [1], "speech_image", expr="the drum like <image>", **files)
    pointing = expression(1, [2], "text_sound", expr="the thing like <audio>", referring_sound="b.wav")
    write_expressions(root, [spoken, pointing, expression(2, [1])])
    return [spoken, pointing]


def test_all_types_of_references_come_with_their_files(root: Path, cache: Path) -> None:
    write_referrings(root)
    data = DataArguments(str(root), benchmark="omni_avs_all", mask_cache=str(cache))
    spoken, pointing, words = load_split(data, "train")
    assert "drum" not in spoken.reference and "picture" in spoken.reference  # what is said is not written down
    assert pointing.reference == "the thing like [the sound that comes with this reference]"
    names = [[Path(path).name for path in sample.reference_media] for sample in (spoken, pointing, words)]
    assert names == [["a.wav", "c.jpg"], ["b.wav"], []]
    assert load_clip(pointing).gt_masks.any() and list_splits("omni_avs_all", root) == ["train"]
    (root / "referrings" / "referring_sounds" / "b.wav").unlink()
    with pytest.raises(DatasetError, match=r"file .*b\.wav is missing"):
        load_split(data, "train")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"expr_type": "sound"}, "expr_type 'sound': expected one of text, text_sound"),
        ({"referring_speech": None}, r"lacks \['referring_speech'\]"),
        ({"referring_image": "../../../secret.jpg"}, "no plain name"),
    ],
)
def test_a_reference_of_another_form_is_told(root: Path, cache: Path, changes: dict[str, Any], said: str) -> None:
    spoken, _ = write_referrings(root)
    write_expressions(root, [spoken | changes])
    with pytest.raises(DatasetError, match=said):
        load_omni_avs(root, "train", mask_cache=cache, all_types=True)


def test_a_chat_endpoint_is_sent_the_references_files(root: Path, cache: Path) -> None:
    write_referrings(root)
    spoken, pointing, words = load_omni_avs(root, "train", mask_cache=cache, all_types=True)
    kinds = [[part["type"] for part in reference_parts(row, MediaArguments())] for row in (spoken, pointing, words)]
    assert kinds == [["text", "input_audio", "text", "image_url"], ["text", "input_audio"], []]
    assert len(media_parts(pointing, MediaArguments())) == len(media_parts(words, MediaArguments())) + 2
    with pytest.raises(MediaError, match="'frames' leaves out: set it to 'frames\\+audio'"):
        reference_parts(pointing, MediaArguments(media="frames"))
    assert AVSample.from_row(to_dataset([pointing], lambda sample: [])[0]) == pointing
    with pytest.raises(DatasetError, match=r"b\.wav, which a manifest has no place for"):
        write_manifest([words, pointing], root.parent / "out", root=root)


def test_four_of_seven_frames_are_evenly_spaced_with_their_own_masks(root: Path, cache: Path) -> None:
    """Frames 0, 2, 4, 6 of 7 at 2 a second: one a second."""
    sample = load_omni_avs(root, "train", mask_cache=cache, num_frames=4)[0]
    assert [Path(path).stem for path in sample.frame_paths] == ["00000", "00002", "00004", "00006"]
    assert sample.fps == pytest.approx(1.0)
    assert load_clip(sample).gt_masks.any(axis=(1, 2)).tolist() == [True, True, True, False]


def test_line_separator_within_a_sentence_does_not_end_the_line(root: Path, cache: Path) -> None:
    write_expressions(root, [expression(0, [1], expr="one\u2028two"), expression(1, [2])])
    assert [s.reference for s in load_omni_avs(root, "train", mask_cache=cache)] == ["one\u2028two", "reference 1"]


# The masks on disk


def test_equal_masks_are_one_file_and_nothing_is_written_twice(root: Path, cache: Path) -> None:
    first = load_omni_avs(root, "train", mask_cache=cache)
    files = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    assert len(files) == 3  # object 1 alone, both joined, empty
    assert load_omni_avs(root, "train", mask_cache=cache) == first
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()} == files


def test_changed_annotation_makes_another_file(root: Path, cache: Path) -> None:
    before = load_omni_avs(root, "train", mask_cache=cache)[0]
    write_videos(root, mask_dict={"1": [rle(0, 5)] * 7, "2": [None] * 7})
    after = load_omni_avs(root, "train", mask_cache=cache)[0]
    assert not set(before.mask_paths) & set(after.mask_paths)
    assert load_clip(after).gt_masks.sum() == 7 * 5 * HEIGHT


def test_run_lengths_may_be_numbers(tmp_path: Path) -> None:
    """8 pixels off, 4 on, 12 off, column by column: the third of 6 columns."""
    path = write_mask([{"size": [4, 6], "counts": [8, 4, 12]}], (4, 6), tmp_path)
    assert np.array_equal(read_masks([path])[0], columns(2, 3))


def test_compressed_run_lengths_decode_as_pycocotools_does(tmp_path: Path) -> None:
    """Differences from the fourth number on, negative ones and runs above 15 pixels among them."""
    masks = np.random.default_rng(0).random((20, 37, 23)) < np.linspace(0, 1, 20)[:, None, None]
    masks[10:, 5:30, 3:20] = True
    for mask in masks:
        packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        path = write_mask([{"size": [37, 23], "counts": packed["counts"].decode()}], (37, 23), tmp_path)
        assert np.array_equal(read_masks([path])[0], mask)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ({"size": [6, 4], "counts": [24]}, "has the size"),
        ({"size": [4, 6], "counts": [8, 4]}, "do not add up to 4 x 6 pixels"),
        ({"size": [4, 6], "counts": "o" * 40}, "hold 'o', where COCO's do not"),  # a number without an end
        ({"size": [4, 6], "counts": ""}, "do not add up"),  # pycocotools would return what is in memory
        ({"size": [4, 6], "counts": "é"}, "hold 'é', where COCO's do not"),
        ({"counts": "abc"}, "is no mask"),
        ("abc", "is no mask"),
    ],
)
def test_malformed_run_lengths_are_an_error_that_names_the_row(
    root: Path, cache: Path, mask: Any, expected: str
) -> None:
    write_videos(root, mask_dict={"1": [mask] * 7, "2": [None] * 7})
    expect_error(root, cache, "clip 'abc_0' (row 0, meta_expressions_train.jsonl:1)", "video 'abc'", expected)


# What is refused


def test_unknown_object_is_an_error(root: Path, cache: Path) -> None:
    write_expressions(root, [expression(0, [9])])
    expect_error(root, cache, "'abc_0'", "object '9'", "only ['1', '2']")


def test_unknown_video_is_an_error(root: Path, cache: Path) -> None:
    write_expressions(root, [expression(0, [1], video_name="xyz")])
    expect_error(root, cache, "names the video 'xyz', which is not in video_dict.json")


def test_mask_too_few_is_an_error(root: Path, cache: Path) -> None:
    write_videos(root, mask_dict={"1": [None] * 6, "2": [None] * 7})
    expect_error(root, cache, "each of the 7 frames", "not 6 for the object '1'")


@pytest.mark.parametrize("name", ["images/abc/00003.jpg", "audios/abc.mp3"])
def test_missing_media_are_an_error_or_dropped_rows(root: Path, cache: Path, name: str) -> None:
    (root / name).unlink()
    expect_error(root, cache, "3 of the 3 rows", name, "is missing: add it or drop the row")
    assert load_omni_avs(root, "train", mask_cache=cache, on_missing="drop") == []


@pytest.mark.parametrize("frame", ["../abc/00000.jpg", "/etc/passwd", ".."])
def test_frames_out_of_the_root_are_refused(root: Path, cache: Path, frame: str) -> None:
    write_videos(root, file_name=[frame] * 7)
    expect_error(root, cache, "'abc_0'", "which is no plain name")


def test_sound_linked_from_outside_is_refused(root: Path, cache: Path, tmp_path: Path) -> None:
    shutil.move(root / "audios" / "abc.mp3", tmp_path / "abc.mp3")
    (root / "audios" / "abc.mp3").symlink_to(tmp_path / "abc.mp3")
    expect_error(root, cache, "outside")


def test_missing_split_and_malformed_line_are_errors(root: Path, cache: Path) -> None:
    with pytest.raises(DatasetError, match="there is no .*meta_expressions_val.jsonl"):
        load_omni_avs(root, "val", mask_cache=cache)
    (root / "meta_expressions_train.jsonl").write_text('{"exp_id": 1}\n')
    expect_error(root, cache, "meta_expressions_train.jsonl:1 lacks ['video_name', 'expr', 'obj_id', 'expr_type']")


def test_mask_of_another_size_than_the_frames_is_an_error(root: Path, cache: Path) -> None:
    sample = load_omni_avs(root, "train", mask_cache=cache)[0]
    for path in sample.frame_paths:
        Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(MediaError, match="save the masks at the frames' size"):
        load_clip(sample)


def test_arguments_name_the_mask_cache(root: Path, cache: Path) -> None:
    args = DataArguments(data_root=str(root), benchmark="omni_avs", mask_cache=str(cache), num_frames=4)
    assert load_split(args, "train") == load_omni_avs(root, "train", mask_cache=cache, num_frames=4)
    args.mask_cache = None
    with pytest.raises(ValueError, match="set `mask_cache`"):
        load_split(args, "train")


def test_a_chain_that_does_not_tell_the_type_of_its_reference_leaves_the_benchmarks_own(root: Path) -> None:
    [sample, *_] = load_omni_avs(root, "train", mask_cache=root / "cache")
    record = {"uid": sample.uid, "row": sample.row, "category": sample.category, "answer": "It is [SEG]."}
    record["steps"] = {"look": "I see it.", "listen": "I hear it.", "read": "it is asked for."}
    chains = root / "chains.jsonl"
    chains.write_text(json.dumps(record) + "\n")
    [with_chain, *_] = load_omni_avs(root, "train", mask_cache=root / "cache", chains=chain_file(chains))
    assert with_chain.chain is not None
    assert with_chain.reference_type == "text"


def test_it_trains_and_is_scored_like_any_other(root: Path, cache: Path, train_and_score) -> None:
    results = train_and_score("train", data_root=str(root), benchmark="omni_avs", mask_cache=str(cache), num_frames=4)
    assert [(result.category == "null", len(result.greedy.preset_masks)) for result in results] == [
        (False, 4),
        (False, 4),
        (True, 4),
    ]
    assert not any(result.is_missing for result in results)
