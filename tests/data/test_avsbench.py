import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import LOADERS, load_split
from aurora_rl.assembly.encoder import assemble_encoder
from aurora_rl.data.avsbench import (
    SOUNDING_CATEGORY,
    SOUNDING_REFERENCE,
    load_avsbench_avss,
    load_avsbench_ms3,
    load_avsbench_s4,
)
from aurora_rl.data.containers import MediaError
from aurora_rl.data.dataset import to_dataset
from aurora_rl.data.files import DatasetError
from aurora_rl.data.media import load_clip
from aurora_rl.data.sample import AVSample
from aurora_rl.models.collate import SFTCollator
from aurora_rl.tasks.prompts import answer_for
from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation, chain_file
from aurora_rl.tasks.targets import answer_only

WIDTH, HEIGHT = 64, 32
CAR, DOG = "--0PQM4-hqg", "a_b_dog"  # names hold hyphens and underscores
GUITAR_AND_MAN = "0nZ8Bk_NDcU"


def write_frames(folder: Path, names: Sequence[str]) -> None:
    folder.mkdir(parents=True)
    for index, name in enumerate(names):
        Image.new("RGB", (WIDTH, HEIGHT), (index * 20, 0, 0)).save(folder / name)


def write_masks(folder: Path, names: Sequence[str], *, mode: str, value: int, width: int = 4) -> None:
    """Masks whose leftmost `width` columns are `value`; a palette's index is a value that says no brightness."""
    folder.mkdir(parents=True)
    pixels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    pixels[:, :width] = value
    image = Image.fromarray(pixels > 0) if mode == "1" else Image.fromarray(pixels)
    if mode == "P":
        image = image.convert("L")
        image.putpalette([0, 0, 0] + [128, 0, 0] * 255)
    assert image.mode == mode
    for name in names:
        image.save(folder / name)


def write_audio(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(5 * 16_000, 0.5), 16_000)


def write_s4(root: Path, media: Path) -> Path:
    """A clip of train, with its first mask only as the owners ship it, and one of val."""
    table = ["name,start,category,split", f"{CAR},30000,race_car,train", f"{DOG},0,dog_barking,val"]
    (root / "s4_meta_data.csv").write_text("\n".join(table) + "\n")
    for name, clip, num_masks in ((CAR, f"train/race_car/{CAR}", 1), (DOG, f"val/dog_barking/{DOG}", 5)):
        write_frames(media / "visual_frames" / clip, [f"{name}_{i}.png" for i in range(1, 6)])
        masks = [f"{name}_{i}.png" for i in range(1, num_masks + 1)]
        write_masks(media / "gt_masks" / clip, masks, mode="1", value=1)
        write_audio(media / "audio_wav" / f"{clip}.wav")
    return root


@pytest.fixture
def s4(tmp_path: Path) -> Path:
    return write_s4(tmp_path, tmp_path)


@pytest.fixture
def ms3(tmp_path: Path) -> Path:
    """A clip of train, whose masks are palette images with the object at index 3."""
    (tmp_path / "ms3_meta_data.csv").write_text(f"video_id,split\n{GUITAR_AND_MAN},train\n")
    names = [f"{GUITAR_AND_MAN}.mp4_{i}.png" for i in range(1, 6)]
    write_frames(tmp_path / "visual_frames" / GUITAR_AND_MAN, names)
    masks = [f"{GUITAR_AND_MAN}_{i}.png" for i in range(1, 6)]
    write_masks(tmp_path / "gt_masks" / "train" / GUITAR_AND_MAN, masks, mode="P", value=3)
    write_audio(tmp_path / "audio_wav" / "train" / f"{GUITAR_AND_MAN}.wav")
    return tmp_path


def write_avss_clip(root: Path, label: str, uid: str, *, num_frames: int, num_masks: int) -> None:
    folder = root / label / uid
    write_frames(folder / "frames", [f"{i}.jpg" for i in range(num_frames)])
    write_masks(folder / "labels_rgb", [f"{i}.png" for i in range(num_masks)], mode="P", value=45)
    write_audio(folder / "audio.wav")


@pytest.fixture
def avss(tmp_path: Path) -> Path:
    """One clip of each label in train, and one of v1s in test."""
    table = [
        "vid,uid,s_min,s_sec,a_obj,split,label",
        "abc,abc_0_5000,0,0,dog,train,v1s",
        "def,def_0_5000,0,0,guitar_man,train,v1m",
        "ghi,ghi_0_10000,0,0,piano,train,v2",
        "jkl,jkl_0_5000,0,0,cat,test,v1s",
    ]
    (tmp_path / "metadata.csv").write_text("\n".join(table) + "\n")
    write_avss_clip(tmp_path, "v1s", "abc_0_5000", num_frames=5, num_masks=1)
    write_avss_clip(tmp_path, "v1m", "def_0_5000", num_frames=5, num_masks=5)
    write_avss_clip(tmp_path, "v2", "ghi_0_10000", num_frames=10, num_masks=10)
    write_avss_clip(tmp_path, "v1s", "jkl_0_5000", num_frames=5, num_masks=5)
    return tmp_path


def expect_error(load: Callable[..., Any], root: Path, split: str, *expected: str) -> None:
    with pytest.raises(DatasetError) as error:
        load(root, split)
    for text in expected:
        assert text in str(error.value)


def names(paths: Sequence[str]) -> list[str]:
    return [Path(path).name for path in paths]


# S4


def test_s4_clip_of_val_has_five_frames_and_masks_in_time_order(s4: Path) -> None:
    [sample] = load_avsbench_s4(s4, "val")
    assert (sample.uid, sample.row, sample.media_id, sample.category) == (DOG, 1, DOG, "dog_barking")
    assert (sample.reference, sample.fps, sample.is_null) == (SOUNDING_REFERENCE, 1.0, False)
    assert names(sample.frame_paths) == names(sample.mask_paths) == [f"{DOG}_{i}.png" for i in range(1, 6)]
    clip = load_clip(sample)
    assert clip.frames.shape == (5, HEIGHT, WIDTH, 3)
    assert clip.gt_masks.sum(axis=(1, 2)).tolist() == [4 * HEIGHT] * 5  # of mode 1, where 255 is never found


def test_s4_clip_of_train_is_its_first_frame_with_the_whole_sound(s4: Path) -> None:
    [sample] = load_avsbench_s4(s4, "train")
    assert names(sample.frame_paths) == names(sample.mask_paths) == [f"{CAR}_1.png"]
    clip = load_clip(sample)
    assert clip.frames.shape == (1, HEIGHT, WIDTH, 3) and clip.gt_masks.shape == (1, HEIGHT, WIDTH)
    assert clip.waveform.shape == (5 * 16_000,)


def test_s4_clip_of_train_with_all_masks_keeps_all_frames(s4: Path) -> None:
    folder = s4 / "gt_masks" / "train" / "race_car" / CAR
    for index in range(2, 6):
        (folder / f"{CAR}_{index}.png").write_bytes((folder / f"{CAR}_1.png").read_bytes())
    assert len(load_avsbench_s4(s4, "train")[0].frame_paths) == 5


def test_only_mask_of_a_train_clip_must_be_the_first(s4: Path) -> None:
    folder = s4 / "gt_masks" / "train" / "race_car" / CAR
    (folder / f"{CAR}_1.png").rename(folder / f"{CAR}_3.png")
    expect_error(load_avsbench_s4, s4, "train", repr(CAR), "s4_meta_data.csv:2", f"{CAR}_1.png is missing, add it")


def test_single_mask_outside_train_is_an_error(s4: Path) -> None:
    folder = s4 / "gt_masks" / "val" / "dog_barking" / DOG
    for index in range(2, 6):
        (folder / f"{DOG}_{index}.png").unlink()
    expect_error(load_avsbench_s4, s4, "val", repr(DOG), "has 1 masks, expected 5", f"{DOG}_2.png is missing")


def test_s4_media_may_lie_in_the_owners_folder(tmp_path: Path) -> None:
    root = write_s4(tmp_path, tmp_path / "s4_data")
    assert "s4_data" in Path(load_avsbench_s4(root, "val")[0].audio_path).parts


def test_missing_sound_is_an_error_or_a_dropped_row(s4: Path, caplog: pytest.LogCaptureFixture) -> None:
    (s4 / "audio_wav" / "val" / "dog_barking" / f"{DOG}.wav").unlink()
    expect_error(load_avsbench_s4, s4, "val", f"{DOG}.wav is missing: add it or drop the row", "s4_meta_data.csv:3")
    with caplog.at_level(logging.WARNING):
        assert load_avsbench_s4(s4, "val", on_missing="drop") == []
    assert "1 of the 1 rows of split 'val' lack files" in caplog.text


def test_missing_frame_is_an_error(s4: Path) -> None:
    (s4 / "visual_frames" / "val" / "dog_barking" / DOG / f"{DOG}_4.png").unlink()
    expect_error(load_avsbench_s4, s4, "val", "has 4 frames, expected 5", f"{DOG}_4.png is missing")


def test_frame_of_another_clip_is_an_error(s4: Path) -> None:
    folder = s4 / "visual_frames" / "val" / "dog_barking" / DOG
    (folder / f"{DOG}_4.png").rename(folder / "other_4.png")
    expect_error(load_avsbench_s4, s4, "val", f"its name is not {DOG}_<number>")


def test_unknown_split_lists_the_splits(s4: Path) -> None:
    expect_error(load_avsbench_s4, s4, "test", "no split 'test': expected one of ['train', 'val']")


@pytest.mark.parametrize(("name", "category"), [("../val", "dog"), ("a", ".."), ("..", "dog")])
def test_names_that_lead_out_of_the_root_are_refused(s4: Path, name: str, category: str) -> None:
    (s4 / "s4_meta_data.csv").write_text(f"name,start,category,split\n{name},0,{category},train\n")
    expect_error(load_avsbench_s4, s4, "train", "which is no plain name")


def test_link_out_of_the_root_is_refused(s4: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    Image.new("RGB", (WIDTH, HEIGHT)).save(outside)
    frame = s4 / "visual_frames" / "val" / "dog_barking" / DOG / f"{DOG}_2.png"
    frame.unlink()
    frame.symlink_to(outside)
    expect_error(load_avsbench_s4, s4, "val", repr(DOG), "outside", "copy the files in")


def test_chains_are_joined_by_name_and_row(s4: Path) -> None:
    steps = {"look": "A dog.", "listen": "A bark.", "read": "What sounds."}
    record = {"uid": DOG, "row": 1, "category": "dog_barking", "steps": steps, "answer": answer_for("dog_barking")}
    (s4 / "chains.jsonl").write_text(json.dumps(record) + "\n")
    [sample] = load_avsbench_s4(s4, "val", chains=chain_file(s4 / "chains.jsonl"))
    assert sample.chain is not None and sample.chain.startswith("Look: A dog.")
    (s4 / "chains.jsonl").write_text(json.dumps({**record, "row": 0}) + "\n")
    with pytest.raises(DatasetError, match=f"s4_meta_data.csv has no uid '{DOG}' at row 0"):
        load_avsbench_s4(s4, "val", chains=chain_file(s4 / "chains.jsonl"))


def test_error_on_reading_a_clip_names_its_line(s4: Path) -> None:
    [sample] = load_avsbench_s4(s4, "val")
    Path(sample.audio_path).write_bytes(b"no sound")
    with pytest.raises(MediaError, match=r"clip 'a_b_dog' \(row 1, s4_meta_data.csv:3\)"):
        load_clip(sample)


# MS3


def test_ms3_frames_are_named_after_the_mp4_and_palette_masks_are_object_above_zero(ms3: Path) -> None:
    [sample] = load_avsbench_ms3(ms3, "train")
    assert (sample.uid, sample.category, sample.reference) == (GUITAR_AND_MAN, SOUNDING_CATEGORY, SOUNDING_REFERENCE)
    assert names(sample.frame_paths) == [f"{GUITAR_AND_MAN}.mp4_{i}.png" for i in range(1, 6)]
    assert load_clip(sample).gt_masks.sum(axis=(1, 2)).tolist() == [4 * HEIGHT] * 5


@pytest.mark.parametrize("title", ["name", "video_id", "\ufeffvideo_id", ""])
def test_ms3_name_is_column_zero_whatever_its_title(ms3: Path, title: str) -> None:
    (ms3 / "ms3_meta_data.csv").write_text(f"{title},split\n{GUITAR_AND_MAN},train\n", encoding="utf-8")
    assert load_avsbench_ms3(ms3, "train")[0].uid == GUITAR_AND_MAN


def test_ms3_row_without_a_name_is_an_error(ms3: Path) -> None:
    (ms3 / "ms3_meta_data.csv").write_text("name,split\n,train\n")
    expect_error(load_avsbench_ms3, ms3, "train", "ms3_meta_data.csv:2 has no name in its first column")


def test_ms3_clip_of_train_needs_all_five_masks(ms3: Path) -> None:
    for index in range(2, 6):
        (ms3 / "gt_masks" / "train" / GUITAR_AND_MAN / f"{GUITAR_AND_MAN}_{index}.png").unlink()
    expect_error(load_avsbench_ms3, ms3, "train", "has 1 masks, expected 5")


# AVSS


def test_avss_clips_lie_under_their_label_and_have_its_length(avss: Path) -> None:
    samples = load_avsbench_avss(avss, "train")
    assert [len(sample.frame_paths) for sample in samples] == [1, 5, 10]
    assert [len(sample.mask_paths) for sample in samples] == [1, 5, 10]
    assert [Path(sample.audio_path).parts[-3] for sample in samples] == ["v1s", "v1m", "v2"]
    assert [sample.category for sample in samples] == ["dog", "guitar_man", "piano"]
    assert names(samples[2].frame_paths)[::9] == ["0.jpg", "9.jpg"]
    assert len(load_avsbench_avss(avss, "test")[0].mask_paths) == 5


def test_avss_class_45_is_object(avss: Path) -> None:
    """45 / 255 rounds to no object: a loader for masks of 0 and 255 reads empty truth from class indices."""
    for sample in load_avsbench_avss(avss, "train"):
        assert load_clip(sample).gt_masks.sum(axis=(1, 2)).tolist() == [4 * HEIGHT] * len(sample.mask_paths)


def test_avss_class_indices_are_read_where_they_are_beside_the_colours(avss: Path) -> None:
    folder = avss / "v1m" / "def_0_5000" / "labels_semantic"
    write_masks(folder, [f"{i}.png" for i in range(5)], mode="L", value=9, width=6)
    sample = load_avsbench_avss(avss, "train")[1]
    assert {Path(path).parent.name for path in sample.mask_paths} == {"labels_semantic"}
    assert load_clip(sample).gt_masks.sum() == 5 * 6 * HEIGHT


def test_avss_masks_count_from_zero(avss: Path) -> None:
    """A lone 1.png belongs to the second frame, not to the first."""
    folder = avss / "v1s" / "abc_0_5000" / "labels_rgb"
    (folder / "0.png").rename(folder / "1.png")
    expect_error(load_avsbench_avss, avss, "train", "0.png is missing")


def test_unknown_label_is_an_error(avss: Path) -> None:
    (avss / "metadata.csv").write_text("vid,uid,s_min,s_sec,a_obj,split,label\nabc,abc_0,0,0,dog,train,v3\n")
    expect_error(load_avsbench_avss, avss, "train", "metadata.csv:2", "'v3', expected one of ['v1m', 'v1s', 'v2']")


# To the trainer


def test_benchmark_is_chosen_by_the_arguments(s4: Path) -> None:
    args = DataArguments(data_root=str(s4), benchmark="avsbench_s4")
    assert load_split(args, "val") == load_avsbench_s4(s4, "val")
    with pytest.raises(ValueError, match="unknown benchmark 's4': choose from ref_avs, avsbench_s4"):
        load_split(DataArguments(data_root=str(s4), benchmark="s4"), "val")
    others = ["omni_avs", "omni_avs_all", "hf_dataset", "questions", "clips", "avqa_r1", "avqa", "mmau", "mmar", "mmsu"]
    assert list(LOADERS) == ["ref_avs", "avsbench_s4", "avsbench_ms3", "avsbench_avss", *others]


def test_samples_survive_the_dataset(s4: Path) -> None:
    samples = load_avsbench_s4(s4, "train")
    dataset = to_dataset(samples, ReferenceSegmentation().messages)
    assert [AVSample.from_row(row) for row in dataset] == samples
    assert SOUNDING_REFERENCE in dataset[0]["prompt"][0]["content"][0]["text"]


def test_sft_makes_a_batch_of_clips_of_one_frame_and_of_five(s4: Path, loaded) -> None:
    args = DataArguments(data_root=str(s4), benchmark="avsbench_s4", min_pixels=256, max_pixels=65536)
    samples = load_split(args, "train") + load_split(args, "val")
    encode = assemble_encoder(args, loaded, samples)
    rows = list(to_dataset(samples, encode.text_prompt))
    batch = SFTCollator(encode, loaded.seg_token_id, answer_only)(rows)
    assert batch["seg_frame_counts"].tolist() == [1, 5]
    assert [tuple(masks.shape) for masks in batch["gt_masks"]] == [(1, HEIGHT, WIDTH), (5, HEIGHT, WIDTH)]
    assert batch["seg_weights"].tolist() == [1.0, 1.0]
    answers = [row[row != -100] for row in batch["labels"]]
    assert encode.tokenizer.decode(answers[1]).count("[SEG]") == 1
    media = {k: v for k, v in batch.items() if k not in ("gt_masks", "seg_weights", "labels")}
    assert loaded.model(**media).mask_logits.shape[0] == 6  # 1 + 5 frames


@pytest.mark.parametrize(
    ("benchmark", "split", "frames"),
    [("avsbench_s4", "val", [5]), ("avsbench_ms3", "train", [5]), ("avsbench_avss", "train", [1, 5, 10])],
)
def test_each_trains_and_is_scored_like_any_other(benchmark, split, frames, request, train_and_score) -> None:
    root = request.getfixturevalue(benchmark.removeprefix("avsbench_"))
    results = train_and_score(split, data_root=str(root), benchmark=benchmark)
    assert [len(result.greedy.preset_masks) for result in results] == frames
    assert {(result.preset, result.reference) for result in results} == {("avsbench", SOUNDING_REFERENCE)}
    assert all(0.0 <= result.J <= 1.0 and not result.is_missing for result in results)
