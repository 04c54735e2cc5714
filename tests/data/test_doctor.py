import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from aurora_rl.data.doctor import PROBLEM_KINDS, Report, SplitFacts, examine, examine_metadata
from aurora_rl.data.files import DatasetError
from aurora_rl.synthetic import SyntheticConfig, write_synthetic_benchmark
from tests.data.odd_files import tone, write_sound

CONFIG = SyntheticConfig(train=2, val=1, test_s=1, test_u=1, test_n=2, rows_per_clip=2, frames=2, size=32, seconds=1.0)
CLIP = "train-00000_0_1000"  # the first clip of metadata.csv, of two rows
HEADER = "vid,uid,split,fid,exp\n"

#: 10 rows: 2 of TODO, 3 null of 2 sentences, 1 duplicate, 3 uids of several rows (twice, twice, thrice).
METADATA = (
    HEADER
    + """a_0_1,a_0_1_cat_1,train,0,The cat.
a_0_1,a_0_1_cat_1,train,0,The white cat.
b_0_1,b_0_1_dog_1,train,0,The dog.
b_0_1,b_0_1_dog_1,val,0,The dog.
a_0_1,null_m-a_0_1_null_1,train,0,The loudest object.
c_0_1,null_c-c_0_1_null_1,test_n,0,The loudest object.
c_0_1,null_c-c_0_1_null_1,test_n,0,The loudest object.
c_0_1,null_c-c_0_1_null_1,TODO,0,The first object.
d_0_1,d_0_1_cow_1,TODO,0,The cow.
d_0_1,d_0_1_cow_2,val,0,"The cow, far away."
"""
)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark without a problem; read-only."""
    root = tmp_path_factory.mktemp("clean") / "data"
    write_synthetic_benchmark(root, CONFIG)
    return root


@pytest.fixture
def root(clean: Path, tmp_path: Path) -> Path:
    """A copy of it to break."""
    return Path(shutil.copytree(clean, tmp_path / "data"))


def counts_of(report: Report) -> dict[str, int]:
    return {problem.kind: problem.count for problem in report.problems}


def check(root: Path, **options: object) -> dict[str, int]:
    return counts_of(examine(root, num_frames=CONFIG.frames, **options))  # type: ignore[arg-type]


def frame(root: Path, index: int = 0) -> Path:
    return root / "media" / CLIP / "frames" / f"{index}.jpg"


def mask(root: Path, index: int = 0) -> Path:
    return sorted((root / "gt_mask" / CLIP).glob("*/*.png"))[index]


def audio(root: Path) -> Path:
    return root / "media" / CLIP / "audio.wav"


def null_folder(root: Path) -> Path:
    return sorted((root / "media").glob("null_m-*"))[0]


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def save_image(path: Path, size: tuple[int, int]) -> None:
    Image.new("L" if path.suffix == ".png" else "RGB", size).save(path)


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that promises any size."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 100) + b"IDAT"


def wav_header(num_bytes: int) -> bytes:
    """A WAV header of mono 16-bit audio at 8 kHz without the audio."""
    form = struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16)
    data = b"data" + struct.pack("<I", num_bytes) + bytes(16)
    return b"RIFF" + struct.pack("<I", num_bytes + 36) + b"WAVEfmt " + struct.pack("<I", 16) + form + data


def link_frames_outside(root: Path) -> None:
    frames = root / "media" / CLIP / "frames"
    frames.rename(root.parent / "elsewhere")
    frames.symlink_to(root.parent / "elsewhere")


def drop_null_media(root: Path) -> None:
    own = null_folder(root)
    original = own.with_name(own.name.removeprefix("null_m-"))
    shutil.copytree(own, original, dirs_exist_ok=True)
    shutil.rmtree(own)


def give_null_row_an_object(root: Path) -> None:
    name = null_folder(root).name
    folders = sorted((root / "gt_mask" / name).glob("fid_*")) or [root / "gt_mask" / name / "fid_0"]
    folders[0].mkdir(parents=True, exist_ok=True)
    for index in range(CONFIG.frames):
        picture = Image.new("L", (CONFIG.size, CONFIG.size))
        picture.putpixel((3, 3), 255 * index)  # the second mask alone marks something
        picture.save(folders[0] / f"{index:05d}.png")


#: One way to break the benchmark for each kind of problem with files, and what is found: always once, and alone.
BREAKS: list[tuple[str, Callable[[Path], object]]] = [
    ("missing_frames", lambda root: shutil.rmtree(frame(root).parent)),
    ("frame_counts", lambda root: frame(root, 1).unlink()),
    ("frame_counts", lambda root: shutil.copy(frame(root), frame(root, 2))),
    ("frame_counts", lambda root: frame(root).rename(frame(root).with_stem("first"))),
    ("unreadable_frames", lambda root: cut_in_half(frame(root))),
    ("unreadable_frames", lambda root: frame(root, 1).write_bytes(b"")),
    ("frame_sizes", lambda root: save_image(frame(root, 1), (32, 16))),
    ("missing_audio", lambda root: audio(root).unlink()),
    ("unreadable_audio", lambda root: audio(root).write_bytes(b"no audio")),
    ("unreadable_audio", lambda root: cut_in_half(audio(root))),
    ("unreadable_audio", lambda root: soundfile.write(audio(root), np.zeros(0), 16_000)),
    ("unreadable_audio", lambda root: soundfile.write(audio(root), np.full(40_000, np.nan), 16_000, "FLOAT")),
    ("missing_masks", lambda root: shutil.rmtree(mask(root).parent)),
    ("mask_counts", lambda root: mask(root, 1).unlink()),
    ("unreadable_masks", lambda root: cut_in_half(mask(root))),
    ("mask_sizes", lambda root: save_image(mask(root, 1), (64, 64))),
    ("null_media_paths", drop_null_media),
    ("null_truths", give_null_row_an_object),
    ("outside_links", link_frames_outside),
]


def test_clean_benchmark_has_no_problem(clean: Path) -> None:
    report = examine(clean, num_frames=CONFIG.frames)
    assert report.problems == ()
    assert not report.has_errors
    assert report.clips_checked == sum(split.media_ids for split in report.facts.splits.values())
    assert report.facts.splits["test_n"] == SplitFacts(rows=2, media_ids=2, null_rows=2)


@pytest.mark.parametrize(("kind", "break_it"), BREAKS)
def test_one_broken_thing_is_one_problem(root: Path, kind: str, break_it: Callable[[Path], object]) -> None:
    break_it(root)
    report = examine(root, num_frames=CONFIG.frames)
    assert counts_of(report) == {kind: 1}
    assert report.has_errors
    assert "metadata.csv:" in report.problems[0].first


def test_stereo_that_cancels_out_is_a_note(root: Path) -> None:
    wave = 0.5 * np.sin(np.arange(16_000) / 10)
    soundfile.write(audio(root), np.stack([wave, -wave], axis=1), 16_000)
    report = examine(root, num_frames=CONFIG.frames)
    assert counts_of(report) == {"odd_audio": 1}
    assert not report.has_errors
    assert "cancel out" in report.problems[0].first and str(audio(root)) in report.problems[0].first


def test_a_damaged_mp3_named_wav_is_found(root: Path) -> None:
    write_sound(audio(root), "mp3", tone(1))
    assert examine(root, num_frames=CONFIG.frames).problems == ()
    audio(root).write_bytes(audio(root).read_bytes()[:-500])
    report = examine(root, num_frames=CONFIG.frames)
    assert counts_of(report) == {"unreadable_audio": 1}
    assert "cut off" in report.problems[0].first


def test_every_kind_of_problem_has_a_test() -> None:
    in_metadata = {"malformed_rows", "control_tokens", "unsafe_names", "todo_rows", "duplicate_rows", "repeated_uids"}
    assert {kind for kind, _ in BREAKS} | in_metadata | {"odd_audio"} == set(PROBLEM_KINDS)


def test_rows_that_spell_a_control_token_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    texts = ["The cat.", "The cat<|im_end|>", "It is [SEG]."]
    path.write_text(HEADER + "".join(f"{n}_0_1,{n}_0_1_cat_1,train,0,{text}\n" for n, text in enumerate(texts)))
    (problem,) = examine_metadata(path).problems
    assert (problem.kind, problem.count, problem.is_error) == ("control_tokens", 2, True)
    assert problem.first.endswith("holds <|im_end|>") and "rows.csv:3" in problem.first


def test_first_example_is_the_first_of_the_file_and_names_the_broken_file(root: Path) -> None:
    for path in (root / "media").glob("*/audio.wav"):
        path.unlink()
    (problem,) = examine(root, num_frames=CONFIG.frames).problems
    assert problem.count == len(list((root / "media").iterdir()))
    assert str(audio(root)) in problem.first and "metadata.csv:2)" in problem.first


def test_masks_that_all_differ_from_the_frames_are_found(root: Path) -> None:
    for path in mask(root).parent.iterdir():
        save_image(path, (16, 16))
    assert check(root) == {"mask_sizes": 1}


def test_problems_of_one_clip_do_not_hide_each_other(root: Path) -> None:
    cut_in_half(frame(root))
    audio(root).unlink()
    mask(root).unlink()
    assert check(root) == {"unreadable_frames": 1, "missing_audio": 1, "mask_counts": 1}


def test_null_row_with_empty_masks_or_none_is_clean(root: Path) -> None:
    name = null_folder(root).name
    shutil.rmtree(root / "gt_mask" / name, ignore_errors=True)
    assert check(root) == {}
    give_null_row_an_object(root)
    for path in (root / "gt_mask" / name).glob("*/*.png"):
        save_image(path, (CONFIG.size, CONFIG.size))
    assert check(root) == {}


def test_null_clip_that_is_nowhere_is_missing_rather_than_misplaced(root: Path) -> None:
    with (root / "metadata.csv").open("a") as file:
        file.write("nowhere_0_1,null_m-nowhere_0_1_null_1,train,0,The loudest object.\n")
    assert check(root) == {"missing_frames": 1, "missing_audio": 1}


def test_crossed_audio_may_lie_in_its_own_folder(root: Path) -> None:
    crossed = sorted((root / "media").glob("null_c-*"))[0]
    (root / "media_cross" / crossed.name).mkdir(parents=True)
    (crossed / "audio.wav").rename(root / "media_cross" / crossed.name / "audio.wav")
    assert check(root) == {}


def test_number_of_frames_is_checked_unless_any_will_do(clean: Path) -> None:
    num_clips = len(list((clean / "media").iterdir()))
    assert counts_of(examine(clean))["frame_counts"] == num_clips
    assert counts_of(examine(clean, num_frames=None)) == {}


def test_only_files_of_the_chosen_splits_are_checked(root: Path) -> None:
    audio(root).unlink()
    assert check(root, splits=["val", "test_s"]) == {}
    assert check(root, splits=["train"]) == {"missing_audio": 1}


@pytest.mark.parametrize("split", ["test", "TODO"])
def test_split_that_is_not_there_is_an_error(root: Path, split: str) -> None:
    with pytest.raises(DatasetError, match=rf"no split.*{split}.*expected some of"):
        check(root, splits=[split])


def test_report_does_not_depend_on_the_number_of_workers(root: Path) -> None:
    for path in (root / "media").glob("*/frames/1.jpg"):
        cut_in_half(path)
    for path in (root / "media").glob("*/audio.wav"):
        path.write_bytes(b"")
    reports = [examine(root, num_frames=CONFIG.frames, num_workers=number) for number in (1, 2, 7)]
    assert reports[0] == reports[1] == reports[2]
    assert len(reports[0].problems) == 2


@pytest.mark.parametrize("options", [{"num_workers": 0}, {"num_frames": 0}])
def test_numbers_that_make_no_sense_are_refused(clean: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        examine(clean, **options)  # type: ignore[arg-type]


def test_counts_of_metadata_are_those_counted_by_hand(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(METADATA)
    report = examine_metadata(tmp_path)
    facts = report.facts
    assert (facts.rows, facts.todo_rows, facts.null_rows) == (10, 2, 4)
    assert (facts.duplicate_rows, facts.repeated_uids, facts.null_sentences) == (1, 3, 2)
    assert facts.splits == {
        "train": SplitFacts(rows=4, media_ids=3, null_rows=1),
        "val": SplitFacts(rows=2, media_ids=2, null_rows=0),
        "test_n": SplitFacts(rows=2, media_ids=1, null_rows=2),
        "TODO": SplitFacts(rows=2, media_ids=2, null_rows=1),
    }
    assert counts_of(report) == {"todo_rows": 2, "duplicate_rows": 1, "repeated_uids": 3}
    assert not report.has_errors
    assert report.clips_checked is None
    assert examine_metadata(tmp_path / "metadata.csv") == report


def test_first_examples_of_notes_name_their_rows(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(METADATA)
    todo, duplicate, repeated = examine_metadata(tmp_path).problems
    assert "row 7, metadata.csv:9" in todo.first
    assert re.search(r"row 6, .* repeats row 5 in split 'test_n'", duplicate.first)
    assert repeated.first == "uid 'a_0_1_cat_1' stands in 2 rows (0, 1)"


def test_rows_in_windows_line_ends_count_the_same(tmp_path: Path) -> None:
    table, reports = tmp_path / "metadata.csv", []
    for end in ("\n", "\r\n"):
        table.write_bytes(METADATA.replace("\n", end).encode())
        reports.append(examine_metadata(table))
    assert reports[0] == reports[1]


def test_files_of_unfinished_rows_are_not_asked_for(root: Path) -> None:
    with (root / "metadata.csv").open("a") as file:
        file.write("z_0_1,z_0_1_cat_1,TODO,0,The cat.\n")
    assert check(root) == {"todo_rows": 1}


def test_malformed_rows_are_counted_and_the_others_still_checked(root: Path) -> None:
    num_rows = examine_metadata(root).facts.rows
    with (root / "metadata.csv").open("a") as file:
        file.write("x,nounderscores,train,0,The cat.\nx,x_0_1_cat_1,train,,The cat.\n")
    audio(root).unlink()
    report = examine(root, num_frames=CONFIG.frames)
    assert counts_of(report) == {"malformed_rows": 2, "missing_audio": 1}
    assert report.facts.rows == num_rows + 2
    assert "nounderscores" in report.problems[0].first


@pytest.mark.parametrize("text", ["", "uid,split\n", HEADER, HEADER + "\xff"])
def test_file_that_is_no_metadata_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "metadata.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError):
        examine_metadata(tmp_path)
    with pytest.raises(DatasetError):
        examine(tmp_path)


def test_table_of_absurd_size_is_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (root / "metadata.csv").stat().st_size
    monkeypatch.setattr("aurora_rl.data.files.MAX_TABLE_BYTES", size - 1)
    with pytest.raises(DatasetError, match=f"has {size} bytes: the limit is {size - 1}"):
        examine_metadata(root)


@pytest.mark.parametrize(
    ("uid", "fid"),
    [
        ("../../etc_cat_1", "0"),
        ("/etc_cat_1", "0"),
        (".._cat_1", "0"),
        ("a\\b_cat_1", "0"),
        ("a" * 300 + "_cat_1", "0"),
        ("é" * 150 + "_cat_1", "0"),
        ("a_0_1_cat_1", "/../../.."),
        ("a_0_1_cat_1", "9" * 300),
    ],
)
def test_row_whose_names_leave_the_root_is_refused_and_never_looked_up(root: Path, uid: str, fid: str) -> None:
    with (root / "metadata.csv").open("a", encoding="utf-8") as file:
        file.write(f"x,{uid},train,{fid},The cat.\n")
    assert check(root) == {"unsafe_names": 1}
    assert counts_of(examine_metadata(root)) == {"unsafe_names": 1}


@pytest.mark.parametrize("name", ["audio.wav", "frames/0.jpg"])
def test_single_file_that_links_outside_is_refused(root: Path, name: str) -> None:
    secret = root.parent / "secret"
    secret.write_text("secret")
    path = root / "media" / CLIP / name
    path.unlink()
    path.symlink_to(secret)
    assert check(root) == {"outside_links": 1}


def test_giant_headers_are_refused_before_anything_is_decoded(root: Path) -> None:
    mask(root).write_bytes(png_header(60_000, 60_000))
    frame(root).write_bytes(png_header(2**31 - 1, 2**31 - 1))
    audio(root).write_bytes(wav_header(0x7FFFFFF0))
    long_audio = root / "media" / "val-00000_0_1000" / "audio.wav"
    long_audio.write_bytes(wav_header(16_000 * 3601))
    os.truncate(long_audio, 44 + 16_000 * 3601)  # sparse: an hour and a second that takes no room
    report = examine(root, num_frames=CONFIG.frames)
    assert counts_of(report) == {"unreadable_frames": 1, "unreadable_audio": 2, "unreadable_masks": 1}
    frames, sound, masks = report.problems
    assert "too large" in frames.first and "too large" in masks.first
    assert "is cut off: 16 bytes of" in sound.first
    (sound,) = examine(root, num_frames=CONFIG.frames, splits=["val"]).problems
    assert "3601 s long: the limit is 3600 s" in sound.first


def test_clip_of_too_many_pixels_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aurora_rl.data.containers.MAX_CLIP_PIXELS", 32 * 32 * CONFIG.frames - 1)
    num_clips = len(list((root / "media").iterdir()))
    assert check(root)["unreadable_frames"] == num_clips


def test_metadata_of_absurd_size_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "metadata.csv").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DatasetError, match="bytes: the limit is"):
        examine_metadata(tmp_path)


def test_folder_without_permission_is_a_problem_of_its_clip(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = frame(root).parent
    list_folder = Path.iterdir

    def iterdir(path: Path):  # type: ignore[no-untyped-def]
        if path == blocked:
            raise PermissionError(13, "Permission denied", str(path))
        return list_folder(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)  # chmod does not stop root, as whom containers run tests
    assert check(root) == {"unreadable_frames": 1}
