import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.early import check_asked
from aurora_rl.assembly.known_options import SAVED_MASKS, read_asked
from aurora_rl.data.files import DatasetError
from aurora_rl.data.media import load_clip, loudness_dbfs
from aurora_rl.data.ref_avs import load_ref_avs
from aurora_rl.data.splits import list_splits
from aurora_rl.evaluation.truth import load_truth
from aurora_rl.tasks.reference_segmentation import chain_file

WIDTH, HEIGHT, NUM_FRAMES = 16, 12, 3
DRUM = "9aB-_x_1000_11000_drum_1"  # ids of the real set hold hyphens and underscores
HAIR_DRYER = "9aB-_x_1000_11000_hair-dryer_1"
CAT = "--KCIe_14000_24000_cat_1"
MUTED = "null_m---KCIe_14000_24000_null_1"
CROSSED = "null_c---KCIe_14000_24000_null_1"

#: In the manner of the official file: 3 rows of train, 2 of val, 1 of test_n, 2 equal ones of test_u and 2 of TODO.
REAL_ROWS = """vid,uid,split,fid,exp
--KCIeTv6PM_14000_24000,--KCIeTv6PM_14000_24000_cat_1,val,0,The object having white and gray fur.
--iSerV5DbY_68000_78000,--iSerV5DbY_68000_78000_hair-dryer_1,val,1,The first object to make a sound.
-1HyqEM_VwM_137000_147000,-1HyqEM_VwM_137000_147000_car_1,train,0,The car on a road.
-1HyqEM_VwM_137000_147000,-1HyqEM_VwM_137000_147000_piano_1,train,2,The object that keeps making sound at all times.
ciaPfihYEEk_3000_13000,null_m-ciaPfihYEEk_3000_13000_null_1,train,0,The object making a sound with a lower rhythm
-cLOg0sQ0Zo_420000_430000,null_c--cLOg0sQ0Zo_420000_430000_null_1,test_n,0,The object making a lowest sound
0EPK7Pv_lbE_45000_55000,0EPK7Pv_lbE_45000_55000_emergency-car_1,test_u,0,"The car, which is loud."
izh4_B0XmNA_35000_45000,izh4_B0XmNA_35000_45000_airplane_3,TODO,0,The object making the loudest sound.
izh4_B0XmNA_35000_45000,izh4_B0XmNA_35000_45000_airplane_1,TODO,0,The sounding object.
0EPK7Pv_lbE_45000_55000,0EPK7Pv_lbE_45000_55000_emergency-car_1,test_u,0,"The car, which is loud."
"""


def media_id_of(uid: str) -> str:
    return uid.rsplit("_", 2)[0]


def write_metadata(root: Path, rows: Sequence[tuple[str, str, int, str]], *, newline: str = "\r\n") -> None:
    """Write metadata.csv from rows of uid, split, fid and reference; `vid` drops the null prefix."""
    lines = ["vid,uid,split,fid,exp"]
    for uid, split, fid, reference in rows:
        vid = media_id_of(uid).removeprefix("null_m-").removeprefix("null_c-")
        lines.append(f"{vid},{uid},{split},{fid},{reference}")
    (root / "metadata.csv").write_bytes((newline.join(lines) + newline).encode())


def write_clip(root: Path, media_id: str, *, num_frames: int = NUM_FRAMES, amplitude: float = 0.5) -> None:
    frames = root / "media" / media_id / "frames"
    frames.mkdir(parents=True)
    for index in range(num_frames):
        Image.new("RGB", (WIDTH, HEIGHT), (index * 20, 0, 0)).save(frames / f"{index}.jpg")
    write_audio(root / "media" / media_id / "audio.wav", amplitude=amplitude)


def write_audio(path: Path, *, amplitude: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(16_000, amplitude), 16_000)


def write_masks(root: Path, media_id: str, fid: int, *, width: int, num_masks: int = NUM_FRAMES) -> None:
    """Masks that mark the leftmost `width` columns."""
    folder = root / "gt_mask" / media_id / f"fid_{fid}"
    folder.mkdir(parents=True)
    mask = Image.new("L", (WIDTH, HEIGHT))
    mask.paste(255, (0, 0, width, HEIGHT))
    for index in range(num_masks):
        mask.save(folder / f"0000{index}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three clips: one of two objects, one of a cat, and the cat's clip muted so that the reference is null."""
    write_metadata(
        tmp_path,
        [
            (DRUM, "train", 0, "The drum."),
            (HAIR_DRYER, "train", 1, "The sounding dryer."),
            (CAT, "val", 0, "The cat."),
            (MUTED, "train", 0, "The object making a loudest sound"),
        ],
    )
    write_clip(tmp_path, "9aB-_x_1000_11000")
    write_masks(tmp_path, "9aB-_x_1000_11000", 0, width=2)
    write_masks(tmp_path, "9aB-_x_1000_11000", 1, width=5)
    write_clip(tmp_path, "--KCIe_14000_24000")
    write_masks(tmp_path, "--KCIe_14000_24000", 0, width=7)
    write_clip(tmp_path, "null_m---KCIe_14000_24000", amplitude=0.0)
    return tmp_path


def expect_dataset_error(root: Path, *expected: str, split: str = "train", **options: Any) -> str:
    """Loading fails with a message that holds every expected text; returns the message."""
    with pytest.raises(DatasetError) as error:
        load_ref_avs(root, split, **{"num_frames": NUM_FRAMES, **options})
    for text in expected:
        assert text in str(error.value)
    return str(error.value)


# What a row becomes


def test_a_row_becomes_a_sample_with_its_files_in_time_order(root: Path) -> None:
    sample = load_ref_avs(root, "train", num_frames=NUM_FRAMES)[1]
    assert sample.uid == HAIR_DRYER
    assert (sample.row, sample.split, sample.category) == (1, "train", "hair-dryer")
    assert sample.media_id == "9aB-_x_1000_11000"
    assert sample.reference == "The sounding dryer."  # without the carriage return of the CRLF
    assert sample.fps == 1.0
    folder = root / "media" / "9aB-_x_1000_11000"
    assert sample.frame_paths == tuple(str(folder / "frames" / name) for name in ("0.jpg", "1.jpg", "2.jpg"))
    assert sample.audio_path == str(folder / "audio.wav")
    assert [Path(path).name for path in sample.mask_paths] == ["00000.png", "00001.png", "00002.png"]
    assert {Path(path).parent.name for path in sample.mask_paths} == {"fid_1"}
    assert (sample.reference_type, sample.chain, sample.seen, sample.heard) == (None, None, None, None)


def test_only_the_splits_rows_are_listed_and_row_counts_the_whole_file(root: Path) -> None:
    assert [(s.uid, s.row) for s in load_ref_avs(root, "train", num_frames=NUM_FRAMES)] == [
        (DRUM, 0),
        (HAIR_DRYER, 1),
        (MUTED, 3),
    ]
    assert [(s.uid, s.row) for s in load_ref_avs(root, "val", num_frames=NUM_FRAMES)] == [(CAT, 2)]


def test_another_table_about_the_same_clips_is_named_in_the_place_of_the_folder(root: Path) -> None:
    """R2-AVSBench's, whose reader takes the five columns `vid, uid, split, fid, exp`."""
    table = root / "R2AVSBench_metadata.csv"
    table.write_bytes((root / "metadata.csv").read_bytes())
    whole, loaded = (load_ref_avs(path, "train", num_frames=NUM_FRAMES) for path in (root, table))
    assert [sample.frame_paths for sample in loaded] == [sample.frame_paths for sample in whole]
    assert loaded[0].origin == "R2AVSBench_metadata.csv:2" and list_splits("ref_avs", table) == list_splits(
        "ref_avs", root
    )
    (root / "metadata.csv").unlink()
    check_asked(read_asked(SAVED_MASKS, ["--data_root", str(table)]))
    truth = load_truth(DataArguments(str(table)), ["train"])
    assert truth.table == table.name and [s.mask_paths for s in truth.samples] == [s.mask_paths for s in whole]


def test_two_references_of_a_clip_have_their_own_masks(root: Path) -> None:
    drum, dryer, _ = (load_clip(sample) for sample in load_ref_avs(root, "train", num_frames=NUM_FRAMES))
    assert drum.gt_masks.sum(axis=(1, 2)).tolist() == [2 * HEIGHT] * 3
    assert dryer.gt_masks.sum(axis=(1, 2)).tolist() == [5 * HEIGHT] * 3
    np.testing.assert_array_equal(drum.frames, dryer.frames)


def test_frames_are_sorted_by_number_and_not_by_name(root: Path) -> None:
    frames = root / "media" / media_id_of(CAT) / "frames"
    for index in range(3, 11):
        Image.new("RGB", (WIDTH, HEIGHT)).save(frames / f"{index}.jpg")
        Image.new("L", (WIDTH, HEIGHT)).save(root / "gt_mask" / media_id_of(CAT) / "fid_0" / f"{index:05d}.png")
    (sample,) = load_ref_avs(root, "val", num_frames=11)
    assert [Path(path).stem for path in sample.frame_paths] == [str(index) for index in range(11)]


def test_frames_numbered_from_one_are_accepted(root: Path) -> None:
    frames = root / "media" / media_id_of(CAT) / "frames"
    for index in (3, 2, 1):
        (frames / f"{index - 1}.jpg").rename(frames / f"{index}.jpg")
    (sample,) = load_ref_avs(root, "val", num_frames=NUM_FRAMES)
    assert [Path(path).name for path in sample.frame_paths] == ["1.jpg", "2.jpg", "3.jpg"]


def test_any_equal_number_of_frames_and_masks_is_taken_when_none_is_given(root: Path) -> None:
    assert [len(sample.frame_paths) for sample in load_ref_avs(root, "val", num_frames=None)] == [3]


def test_the_files_of_a_file_manager_are_overlooked(root: Path) -> None:
    frames = root / "media" / media_id_of(CAT) / "frames"
    for name in (".DS_Store", "._0.jpg", "Thumbs.db"):
        (frames / name).write_text("")
    (sample,) = load_ref_avs(root, "val", num_frames=NUM_FRAMES)
    assert len(sample.frame_paths) == 3


def test_a_clips_folders_are_listed_once_however_many_rows_it_has(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_metadata(root, [(f"--KCIe_14000_24000_cat_{number}", "val", 0, "The cat.") for number in range(20)])
    listed: list[Path] = []
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: listed.append(self) or iterdir(self))
    assert len(load_ref_avs(root, "val", num_frames=NUM_FRAMES)) == 20
    assert len(listed) == 2  # frames and masks


# Null references


def test_a_null_row_is_looked_up_by_its_prefixed_id_and_gets_no_real_object(root: Path) -> None:
    # `vid` of the muted row is the cat's id, whose folders hold a sounding cat and its masks: the trap.
    sample = load_ref_avs(root, "train", num_frames=NUM_FRAMES)[2]
    assert sample.is_null
    assert sample.media_id == "null_m---KCIe_14000_24000"
    assert sample.mask_paths == ()
    clip = load_clip(sample)
    assert not clip.gt_masks.any()
    assert clip.gt_masks.shape == (3, HEIGHT, WIDTH)
    assert loudness_dbfs(clip.waveform) == -np.inf


def test_a_null_row_without_media_of_its_own_never_falls_back_to_the_real_clip(root: Path) -> None:
    write_metadata(root, [(CROSSED, "test_n", 0, "The object making a lowest sound")])
    expect_dataset_error(root, CROSSED, str(root / "media" / "null_c---KCIe_14000_24000" / "frames"), split="test_n")


def test_a_null_row_may_ship_empty_masks(root: Path) -> None:
    write_masks(root, media_id_of(MUTED), 0, width=0)
    sample = load_ref_avs(root, "train", num_frames=NUM_FRAMES)[2]
    assert len(sample.mask_paths) == 3
    assert not load_clip(sample).gt_masks.any()


def test_a_null_row_with_some_masks_missing_is_an_error(root: Path) -> None:
    write_masks(root, media_id_of(MUTED), 0, width=0, num_masks=2)
    expect_dataset_error(root, MUTED, "2 masks, expected 3", "00002.png is missing")


def test_crossed_audio_is_taken_from_media_cross(root: Path) -> None:
    write_metadata(root, [(CROSSED, "test_n", 0, "The object making a lowest sound")])
    write_clip(root, media_id_of(CROSSED), amplitude=0.5)
    crossed_path = root / "media_cross" / media_id_of(CROSSED) / "audio.wav"
    write_audio(crossed_path, amplitude=0.1)
    (sample,) = load_ref_avs(root, "test_n", num_frames=NUM_FRAMES)
    assert sample.audio_path == str(crossed_path)
    assert loudness_dbfs(load_clip(sample).waveform) == pytest.approx(-20.0, abs=0.1)


def test_crossed_audio_without_media_cross_lies_beside_the_frames(root: Path) -> None:
    write_metadata(root, [(CROSSED, "test_n", 0, "The object making a lowest sound")])
    write_clip(root, media_id_of(CROSSED))
    (sample,) = load_ref_avs(root, "test_n", num_frames=NUM_FRAMES)
    assert sample.audio_path == str(root / "media" / media_id_of(CROSSED) / "audio.wav")


def test_media_cross_is_not_for_rows_that_are_not_crossed(root: Path) -> None:
    for uid in (CAT, MUTED):
        write_audio(root / "media_cross" / media_id_of(uid) / "audio.wav", amplitude=0.1)
    samples = [*load_ref_avs(root, "val", num_frames=NUM_FRAMES), *load_ref_avs(root, "train", num_frames=NUM_FRAMES)]
    assert {Path(sample.audio_path).parent.parent for sample in samples} == {root / "media"}


# metadata.csv


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_real_rows_are_counted_per_split(tmp_path: Path, caplog: pytest.LogCaptureFixture, newline: str) -> None:
    (tmp_path / "metadata.csv").write_bytes(REAL_ROWS.replace("\n", newline).encode())
    for uid in {line.split(",")[1] for line in REAL_ROWS.splitlines()[1:]}:
        if not (tmp_path / "media" / media_id_of(uid)).exists():
            write_clip(tmp_path, media_id_of(uid))
            for fid in range(3):
                write_masks(tmp_path, media_id_of(uid), fid, width=0)
    splits = ("train", "val", "test_u", "test_n")
    counts = {split: len(load_ref_avs(tmp_path, split, num_frames=NUM_FRAMES)) for split in splits}
    assert counts == {"train": 3, "val": 2, "test_u": 2, "test_n": 1}
    assert "dropped 2 row(s) of split 'TODO'" in caplog.text

    first, second = load_ref_avs(tmp_path, "test_u", num_frames=NUM_FRAMES)
    assert first.reference == "The car, which is loud."
    assert (first.category, first.media_id) == ("emergency-car", "0EPK7Pv_lbE_45000_55000")
    assert first.uid == second.uid
    assert (first.row, second.row) == (6, 9)
    assert first.key != second.key


def test_an_unknown_split_is_an_error_that_lists_those_present(root: Path) -> None:
    expect_dataset_error(root, "no split 'test'", "['train', 'val']", "metadata.csv", split="test")


def test_the_unfinished_split_is_never_offered(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(REAL_ROWS)
    expect_dataset_error(tmp_path, "['test_n', 'test_u', 'train', 'val']", split="TODO")


def test_a_root_without_metadata_is_an_error(tmp_path: Path) -> None:
    expect_dataset_error(tmp_path, str(tmp_path / "metadata.csv"), "root must be the folder")


def test_a_lacking_column_is_an_error(root: Path) -> None:
    (root / "metadata.csv").write_text("vid,uid,split,exp\na,a_cat_1,train,The cat.\n")
    expect_dataset_error(root, "metadata.csv lacks the column(s) ['fid']")


def test_a_row_without_a_value_is_an_error_that_names_its_line(root: Path) -> None:
    (root / "metadata.csv").write_text("vid,uid,split,fid,exp\na,a_b_cat_1,train,0,The cat.\na,a_b_dog_1,train,0\n")
    expect_dataset_error(root, "metadata.csv:3", "'a_b_dog_1'", "no value for ['exp']")


def test_an_unquoted_comma_in_a_reference_is_an_error_and_not_half_a_sentence(root: Path) -> None:
    (root / "metadata.csv").write_text("vid,uid,split,fid,exp\na,a_b_cat_1,train,0,The cat, which purrs.\n")
    expect_dataset_error(root, "metadata.csv:2", "more values than columns")


def test_a_uid_without_category_is_an_error(root: Path) -> None:
    (root / "metadata.csv").write_text("vid,uid,split,fid,exp\na,a_1,train,0,The cat.\n")
    expect_dataset_error(root, "metadata.csv:2", "'a_1'", "expected <id>_<category>_<number>")


def test_a_byte_order_mark_is_no_part_of_the_first_column(root: Path) -> None:
    (root / "metadata.csv").write_text(f"uid,split,fid,exp\n{CAT},val,0,The cat.\n", encoding="utf-8-sig")
    assert [sample.uid for sample in load_ref_avs(root, "val", num_frames=NUM_FRAMES)] == [CAT]


def test_metadata_in_another_encoding_is_an_error(root: Path) -> None:
    (root / "metadata.csv").write_bytes("vid,uid,split,fid,exp\na,a_b_cat_1,train,0,Die Hündin.\n".encode("latin-1"))
    expect_dataset_error(root, "metadata.csv", "expected a CSV file in UTF-8")


@pytest.mark.parametrize("num_frames", [0, -1])
def test_a_number_of_frames_below_one_is_an_error(root: Path, num_frames: int) -> None:
    with pytest.raises(ValueError, match="num_frames"):
        load_ref_avs(root, "train", num_frames=num_frames)


# Missing files


def test_a_missing_frame_is_an_error_that_names_sample_file_and_remedy(root: Path) -> None:
    frame = root / "media" / media_id_of(CAT) / "frames" / "1.jpg"
    frame.unlink()
    expect_dataset_error(
        root, f"clip {CAT!r} (row 2, metadata.csv:4)", f"{frame} is missing, add it or drop the row", split="val"
    )


@pytest.mark.parametrize("name", ["0.jpg", "2.jpg"])
def test_a_missing_first_or_last_frame_is_named(root: Path, name: str) -> None:
    frame = root / "media" / media_id_of(CAT) / "frames" / name
    frame.unlink()
    expect_dataset_error(root, CAT, "has 2 frames, expected 3", f"{frame} is missing", split="val")


def test_a_gap_is_an_error_even_where_any_number_is_taken(root: Path) -> None:
    frame = root / "media" / media_id_of(CAT) / "frames" / "1.jpg"
    frame.unlink()
    expect_dataset_error(root, CAT, f"{frame} is missing", split="val", num_frames=None)


def test_nine_masks_for_ten_frames_are_an_error(root: Path) -> None:
    uid = "ten_0_10_cat_1"
    write_metadata(root, [(uid, "val", 0, "The cat.")])
    write_clip(root, "ten_0_10", num_frames=10)
    write_masks(root, "ten_0_10", 0, width=1, num_masks=9)
    mask = root / "gt_mask" / "ten_0_10" / "fid_0" / "00009.png"
    for num_frames in (10, None):
        expect_dataset_error(
            root, uid, "9 masks, expected 10", f"{mask} is missing", split="val", num_frames=num_frames
        )


def test_more_frames_than_expected_are_an_error(root: Path) -> None:
    expect_dataset_error(root, CAT, "has 3 frames, expected 2: remove the surplus", split="val", num_frames=2)


def test_missing_audio_is_an_error(root: Path) -> None:
    audio = root / "media" / media_id_of(CAT) / "audio.wav"
    audio.unlink()
    expect_dataset_error(root, CAT, f"the audio {audio} is missing: add it or drop the row", split="val")


def test_missing_masks_of_a_real_object_are_an_error(root: Path) -> None:
    write_metadata(root, [(CAT, "val", 4, "The cat.")])
    folder = root / "gt_mask" / media_id_of(CAT) / "fid_4"
    expect_dataset_error(root, CAT, f"{folder} holds no masks: add them or drop the row", split="val")


def test_a_frame_whose_name_is_no_number_is_an_error(root: Path) -> None:
    frame = root / "media" / media_id_of(CAT) / "frames" / "cover.jpg"
    Image.new("RGB", (WIDTH, HEIGHT)).save(frame)
    expect_dataset_error(root, CAT, f"{frame} is among the frames but its name is no number", split="val")


def test_two_files_of_one_frame_are_an_error(root: Path) -> None:
    frames = root / "media" / media_id_of(CAT) / "frames"
    Image.new("RGB", (WIDTH, HEIGHT)).save(frames / "01.png")
    expect_dataset_error(root, CAT, str(frames / "01.png"), str(frames / "1.jpg"), "remove one of them", split="val")


def test_rows_with_the_same_trouble_are_one_entry_with_their_count(root: Path) -> None:
    write_metadata(root, [(f"--KCIe_14000_24000_cat_{number}", "val", 0, "The cat.") for number in range(1, 8)])
    (root / "media" / media_id_of(CAT) / "audio.wav").unlink()
    message = expect_dataset_error(root, "7 of the 7 rows", "[6 other row(s) have the same problem]", CAT, split="val")
    assert message.count("audio.wav") == 1


def test_only_the_first_five_troubles_are_shown(root: Path) -> None:
    write_metadata(root, [(f"gone{number}_0_1_cat_1", "val", 0, "The cat.") for number in range(7)])
    message = expect_dataset_error(root, "7 of the 7 rows", "gone0_0_1_cat_1", "gone4_0_1_cat_1", split="val")
    assert "gone5" not in message
    assert "2 further problem(s)" in message


def test_rows_without_files_can_be_dropped_and_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    audio = root / "media" / media_id_of(DRUM) / "audio.wav"
    audio.unlink()
    samples = load_ref_avs(root, "train", num_frames=NUM_FRAMES, on_missing="drop")
    assert [(sample.uid, sample.row) for sample in samples] == [(MUTED, 3)]
    assert "2 of the 3 rows of split 'train' lack files" in caplog.text
    assert str(audio) in caplog.text
    assert caplog.records[-1].levelno == logging.WARNING


def test_another_word_for_what_to_do_with_missing_files_is_an_error(root: Path) -> None:
    with pytest.raises(ValueError, match="'error' or 'drop'"):
        load_ref_avs(root, "train", on_missing="ignore")  # type: ignore[arg-type]


# Paths that leave the root


@pytest.mark.parametrize(
    ("uid", "fid"),
    [
        ("../outside_0_1_cat_1", "0"),
        ("/etc/outside_0_1_cat_1", "0"),
        ("..\\outside_0_1_cat_1", "0"),
        (".._cat_1", "0"),
        ("a\0b_0_1_cat_1", "0"),
        (CAT, "0/../../../outside"),
    ],
)
def test_a_name_that_leaves_the_root_is_refused(root: Path, uid: str, fid: str) -> None:
    (root / "metadata.csv").write_text(f"vid,uid,split,fid,exp\nx,{uid},val,{fid},The cat.\n")
    expect_dataset_error(root, repr(uid), "metadata.csv:2", "which is no plain name", split="val")
    expect_dataset_error(root, "which is no plain name", split="val", on_missing="drop")


@pytest.mark.parametrize(
    "inside", ["media/--KCIe_14000_24000/frames", "media/--KCIe_14000_24000/audio.wav", "gt_mask/--KCIe_14000_24000"]
)
def test_a_link_that_leaves_the_root_is_refused(
    root: Path, tmp_path_factory: pytest.TempPathFactory, inside: str
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "moved"
    (root / inside).rename(outside)
    (root / inside).symlink_to(outside)
    expect_dataset_error(root, CAT, str(outside), "copy the files in", split="val")


def test_a_linked_frame_that_leaves_the_root_is_refused(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "private.jpg"
    frame = root / "media" / media_id_of(CAT) / "frames" / "1.jpg"
    frame.rename(outside)
    frame.symlink_to(outside)
    expect_dataset_error(root, CAT, str(frame), str(outside), split="val")


def test_links_within_the_root_and_a_linked_root_are_fine(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    frames = root / "media" / media_id_of(CAT) / "frames"
    (frames / "1.jpg").unlink()
    (frames / "1.jpg").symlink_to(frames / "0.jpg")
    link = tmp_path_factory.mktemp("elsewhere") / "benchmark"
    link.symlink_to(root)
    (sample,) = load_ref_avs(link, "val", num_frames=NUM_FRAMES)
    assert load_clip(sample).frames.shape[0] == 3


# Chains of thought


def chain_record(**changes: Any) -> dict[str, Any]:
    record = {
        "uid": HAIR_DRYER,
        "row": 1,
        "split": "train",
        "category": "hair-dryer",
        "exp": "The sounding dryer.",
        "steps": {"look": "I see a drum.", "listen": "I hear a hair-dryer.", "read": "the sounding one is asked for."},
        "answer": "the target is the hair-dryer. It is [SEG].",
        "generator": "gold",
        "verified": True,
        "reference_type": "sound",
        "seen": ["drum", "hair-dryer"],
        "heard": [],
    }
    return {**record, **changes}


def write_chains(root: Path, *records: dict[str, Any]) -> Path:
    path = root / "chains.jsonl"
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def test_a_chain_fills_its_own_row_whatever_its_position(root: Path) -> None:
    cat = chain_record(uid=CAT, row=2, split="val", category="cat", exp="The cat.", seen=None)
    path = write_chains(root, cat, chain_record())
    drum, dryer, muted = load_ref_avs(root, "train", num_frames=NUM_FRAMES, chains=chain_file(path))
    assert dryer.chain == (
        "Look: I see a drum.\n"
        "Listen: I hear a hair-dryer.\n"
        "Read: the sounding one is asked for.\n"
        "Answer: the target is the hair-dryer. It is [SEG]."
    )
    assert dryer.reference_type == "sound"
    assert dryer.seen == ("drum", "hair-dryer")
    assert dryer.heard == ()  # nothing is heard, which is not the same as unknown
    assert drum.chain is None and muted.chain is None
    (cat_sample,) = load_ref_avs(root, "val", num_frames=NUM_FRAMES, chains=chain_file(path))
    assert cat_sample.chain is not None and cat_sample.seen is None


def test_a_file_of_chains_is_only_read_when_it_is_named(root: Path) -> None:
    write_chains(root, chain_record())
    assert [sample.chain for sample in load_ref_avs(root, "train", num_frames=NUM_FRAMES)] == [None] * 3


def test_a_line_separator_inside_a_chain_is_text(root: Path) -> None:
    path = write_chains(root, chain_record(answer="so\u2028the target is the hair-dryer. It is [SEG]."))
    chain = load_ref_avs(root, "train", num_frames=NUM_FRAMES, chains=chain_file(path))[1].chain
    assert chain is not None and "so\u2028the target" in chain


@pytest.mark.parametrize("changes", [{"uid": "gone_0_1_cat_1"}, {"row": 0}, {"row": 4}, {"row": -3}])
def test_a_chain_of_an_unknown_row_is_an_error(root: Path, changes: dict[str, Any]) -> None:
    path = write_chains(root, chain_record(**changes))
    uid, row = chain_record(**changes)["uid"], chain_record(**changes)["row"]
    expect_dataset_error(
        root, f"{path}:1", f"no uid {uid!r} at row {row}", "rebuild the chains", chains=chain_file(path)
    )


@pytest.mark.parametrize(("name", "value"), [("category", "drum"), ("exp", "The drum.")])
def test_a_chain_that_contradicts_its_row_is_an_error(root: Path, name: str, value: str) -> None:
    path = write_chains(root, chain_record(**{name: value}))
    expect_dataset_error(root, f"{path}:1", HAIR_DRYER, f"not {value!r}", "rebuild the chains", chains=chain_file(path))


def test_two_chains_of_a_row_are_an_error(root: Path) -> None:
    path = write_chains(root, chain_record(), chain_record())
    expect_dataset_error(root, f"{path}:2", HAIR_DRYER, "already has a chain", chains=chain_file(path))


def test_a_chain_without_a_step_is_an_error(root: Path) -> None:
    path = write_chains(root, chain_record(steps={"look": "I see a drum.", "read": "it is asked for."}))
    expect_dataset_error(root, f"{path}:1", "lacks the step(s) ['listen']", chains=chain_file(path))


def test_a_category_that_should_be_a_list_is_an_error_and_not_spelled(root: Path) -> None:
    path = write_chains(root, chain_record(heard="drum"))
    expect_dataset_error(root, f"{path}:1", "heard is 'drum'", "expected a list", chains=chain_file(path))


@pytest.mark.parametrize("line", ["{", "[]", '{"uid": "a"}', '{"row": "1"}', "\xff"])
def test_a_malformed_line_of_chains_is_an_error_that_names_it(root: Path, line: str) -> None:
    path = write_chains(root, chain_record())
    with path.open("ab") as file:
        file.write(os.linesep.encode() + line.encode("latin-1"))
    expect_dataset_error(root, f"{path}:3", chains=chain_file(path))


def test_a_missing_file_of_chains_is_an_error(root: Path) -> None:
    expect_dataset_error(root, str(root / "gone.jsonl"), chains=chain_file(root / "gone.jsonl"))
