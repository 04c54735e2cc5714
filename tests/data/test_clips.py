"""Own clips by a manifest: its kinds, its columns, videos sampled without cutting, sounds, silence."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from aurora_rl.data import video
from aurora_rl.data.clip_reader import ClipReader
from aurora_rl.data.clips import load_clips, without_unlabelled
from aurora_rl.data.clips_doctor import is_manifest
from aurora_rl.data.dataset import to_dataset
from aurora_rl.data.files import DatasetError, UnsafePathError
from aurora_rl.data.manifest import read_splits
from aurora_rl.data.media import load_clip, read_clip_size
from aurora_rl.data.sample import AVSample
from aurora_rl.data.video import frames_on_screen, open_video
from aurora_rl.data.video_facts import read_video_facts
from aurora_rl.models.clip_options import ClipOptions
from aurora_rl.models.encoding import PromptOptions
from tests.data.odd_files import grey, tone, write_film
from tests.data.own_clips import HEIGHT, PICTURES, ROW, WIDTH, link_clips, write_clips, write_manifest


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The films, read-only; a test links them into its own folder."""
    return write_clips(tmp_path_factory.mktemp("own"))


@pytest.fixture
def root(clips: Path, tmp_path: Path) -> Path:
    return link_clips(clips, tmp_path / "root")


def one(root: Path, *, split: str = "train", options: dict | None = None, **row: object) -> AVSample:
    """The sample of a manifest with one row."""
    write_manifest(root / "manifest.jsonl", [{**ROW, **row}])
    [sample] = load_clips(root, split, **(options or {}))
    return sample


def levels(sample: AVSample) -> list[int]:
    """The number of the film's picture in each frame."""
    return [round(level / 10) for level in load_clip(sample).frames[:, 0, 0, 0].tolist()]


# Kinds of manifests


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_all_kinds_of_manifests_say_the_same(root: Path, suffix: str) -> None:
    rows = [
        {"id": "a", **ROW, "masks": "empty", "split": "train", "fps": 2.0, "seen": ["drum", "dog"], "weather": "rain"},
        {"id": "b", "video": "clips/silent.mp4", "reference": 'a "quoted", text\nof two lines: ß', "split": "test"},
        {"id": "c", "frames": None, "video": "clips/still.mp4", "reference": "x", "category": "drum"},
    ]
    path = write_manifest(root / f"my rows.{suffix}", rows)
    first, last = load_clips(path, "train")
    assert (first.uid, first.row, first.key, first.seen, first.is_null) == ("a", 0, "a#0", ("drum", "dog"), True)
    assert (last.uid, last.row, last.category, last.mask_paths, last.seen) == ("c", 2, "drum", (), None)
    [other] = load_clips(root, "test")  # the only such file of the folder
    assert other.reference == 'a "quoted", text\nof two lines: ß' and not other.has_gt_masks
    assert first.extra_columns == {"weather": "rain"} and other.extra_columns == {"weather": None}
    assert read_splits(root) == {"train", "test"}


def test_a_csv_of_a_spreadsheet_is_read(root: Path) -> None:
    text = "\ufeffvideo,reference,masks\r\nclips/a.mp4,the thing,empty\r\nclips/silent.mp4,other,null\r\n"
    (root / "rows.csv").write_bytes(text.encode())
    first, second = load_clips(root, "train")
    assert first.origin == "rows.csv:2" and first.is_null and not second.has_gt_masks
    assert (first.uid, second.uid) == ("0", "1")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "video;reference\nclips/a.mp4;x\n", "separates its columns by semicolons"),
        ("a.csv", "video\treference\nclips/a.mp4\tx\n", "separates its columns by tabs"),
        ("a.csv", "", "is empty: expected a first line"),
        ("a.csv", "video,reference\n", "has no rows"),
        ("a.csv", "video,video\na,b\n", "has the column 'video' twice"),
        ("a.csv", "video,reference\nclips/a.mp4,x,y\n", "a.csv:2 has more values than columns"),
        ("a.csv", "video,reference,masks\nclips/a.mp4,x\n", r"a.csv:2 has no value for \['masks'\]"),
        ("a.csv", "video,reference\nclips/a.mp4,x\n".encode("utf-16"), "expected a CSV file in UTF-8"),
        ("a.jsonl", "", "has no rows"),
        ("a.jsonl", "[1]\n", "a.jsonl:1: expected a JSON object"),
        ("a.jsonl", '{"video": "clips/a.mp4", "reference": "x"}\n{"video"\n', "a.jsonl:2: .*fix or drop the line"),
        ("a.parquet", "PAR1", "expected a Parquet file"),
        ("a.csv", 'video,reference\nclips/a.mp4,"x\nclips/a.mp4,y\n', "cannot read .*a.csv: unexpected end of data"),
        ("a.json", "[]", "is no manifest: expected .jsonl.*one JSON object a line"),
        ("a.jsonl", '{"video": "a", "frames": "b", "reference": "x"}', "both video and frames"),
        ("a.jsonl", '{"reference": "x"}', "neither video nor frames nor audio"),
        ("a.jsonl", '{"video": "clips/a.mp4"}', "no reference: add the column, or .* columns: {reference: caption}"),
        ("a.jsonl", '{"video": "clips/a.mp4", "reference": 7}', "reference is 7: expected text"),
        ("a.jsonl", '{"video": "clips/a.mp4", "reference": "x", "fps": "fast"}', "fps is 'fast': expected frames"),
        ("a.jsonl", '{"video": "clips/a.mp4", "reference": "x", "fps": 1e400}', "fps is inf: expected frames"),
        ("a.jsonl", '{"video": "clips/a.mp4", "reference": "\\ud800"}', "no valid text"),
        ("a.jsonl", '{"video": "clips/a.mp4", "reference": "x", "choices": ["a"]}', "expected 2 to 26 different"),
        ("a.jsonl", '{"video": "clips/a.mp4", "reference": "x", "masks": 3}', "masks is 3: expected a path"),
    ],
)
def test_a_malformed_manifest_is_told_with_its_place(root: Path, name: str, content: str | bytes, message: str) -> None:
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DatasetError, match=message):
        load_clips(root / name, "train")


def test_a_folder_with_two_tables_needs_a_name(root: Path) -> None:
    for name in ("a.csv", "b.csv"):
        write_manifest(root / name, [ROW])
    with pytest.raises(DatasetError, match=r"several files that may be the manifest \(a.csv, b.csv\): name one"):
        load_clips(root, "train")
    assert is_manifest(root)  # so that the doctor says the same
    assert len(load_clips(root / "b.csv", "train")) == 1
    write_manifest(root / "manifest.csv", [ROW, ROW])
    assert len(load_clips(root, "train")) == 2


def test_two_rows_of_one_id_are_an_error(root: Path) -> None:
    write_manifest(root / "a.jsonl", [{**ROW, "id": 1, "split": "test"}, ROW])  # the second is row 1
    with pytest.raises(DatasetError, match=r"a.jsonl:2: the id '1' is that of a.jsonl:1, too"):
        load_clips(root, "train")


def test_an_id_may_be_a_number_as_tables_write_it(root: Path) -> None:
    assert [one(root, id=value).uid for value in (7, 7.0, "07", None)] == ["7", "7", "07", "0"]
    with pytest.raises(DatasetError, match="id is 1.5: expected text"):
        one(root, id=1.5)
    with pytest.raises(DatasetError, match="id is True: expected text"):
        one(root, id=True)


def test_columns_are_renamed(root: Path) -> None:
    rows = [{"video": "clips/a.mp4", "caption": "the thing", "reference": "a title", "part": "val"}]
    write_manifest(root / "a.csv", rows)
    columns = {"reference": "caption", "split": "part"}
    [sample] = load_clips(root, "val", columns=columns)
    assert sample.reference == "the thing" and sample.extra is None
    assert read_splits(root, columns) == {"val"}
    with pytest.raises(DatasetError, match=r"a.csv:2: there is no column 'text' as `columns` says: it has"):
        load_clips(root, "val", columns={"reference": "text"})


def test_a_taken_name_is_told_and_reaches_no_reward(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    sample = one(root, sample="x", weather=3)
    assert sample.extra_columns == {"weather": 3}
    assert "has the column 'sample'" in caplog.text and "columns: {my_sample: sample}" in caplog.text
    assert one(root, sample="x", options={"columns": {"my_sample": "sample"}}).extra_columns == {"my_sample": "x"}


def test_what_earlier_versions_did_not_know_is_not_in_the_repr_that_resume_files_hold(root: Path) -> None:
    write_manifest(root / "a.jsonl", [{**ROW, "weather": "rain"}])
    assert "clips/a.mp4" in repr(load_clips(root, "train"))  # by its id
    assert all(name not in repr(load_clips(root, "train")) for name in ("video_path", "frame_times", "extra"))


def test_samples_survive_a_dataset_row(root: Path) -> None:
    rows = [{**ROW, "a": [1, 2]}, {**ROW, "b": {"c": None}}]
    write_manifest(root / "a.jsonl", rows)
    samples = load_clips(root, "train")
    dataset = to_dataset(samples, lambda sample: [])
    assert [AVSample.from_row(row) for row in dataset] == samples
    assert [sample.extra_columns for sample in samples] == [{"a": [1, 2], "b": None}, {"a": None, "b": {"c": None}}]


# Files


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/etc/passwd", "absolute path '/etc/passwd' as video: write it relative to"),
        ("C:\\clips\\a.mp4", "absolute path"),
        ("../root/clips/a.mp4", "leads out of its folder"),
        ("clips/../../root/clips/a.mp4", "leads out of its folder"),
        ("clips/outside.mp4", "outside .*: copy the file in"),
        ("out/a.mp4", "outside .*: copy the file in"),
        ("clips/a\0.mp4", "which is no path"),
    ],
)
def test_no_path_leads_out_of_the_root(root: Path, clips: Path, path: str, message: str) -> None:
    (root / "clips" / "outside.mp4").symlink_to(clips / "clips" / "a.mp4")
    (root / "out").symlink_to(clips / "clips")
    with pytest.raises(UnsafePathError, match=message):
        one(root, video=path)


def test_a_path_that_no_system_opens_is_told_by_its_row(root: Path) -> None:
    (root / "circle.mp4").symlink_to(root / "circle.mp4")
    for path in ("x" * 300 + ".mp4", "circle.mp4"):
        with pytest.raises(
            DatasetError, match=r"^clip '0' \(row 0, manifest.jsonl:1\) has the video .* cannot be opened"
        ):
            one(root, video=path)
    (root / "manifest.jsonl").write_text(json.dumps({**ROW, "masks": ["\ud800.png", None]}))
    with pytest.raises(DatasetError, match="manifest.jsonl:1"):
        load_clips(root, "train")


def test_a_link_inside_the_root_is_followed(root: Path) -> None:
    (root / "link.mp4").symlink_to(root / "clips" / "a.mp4")
    assert one(root, video="link.mp4").num_frames == 2


def test_missing_and_unreadable_files_are_told_together(root: Path) -> None:
    (root / "broken.mp4").write_bytes((root / "clips" / "a.mp4").read_bytes()[:400])
    (root / "sound.mp4").write_bytes(write_film(root / "x.mp4", sounds=[[(0.0, tone(1))]]).read_bytes())
    rows = [{**ROW, "video": video} for video in ("gone.mp4", "clips\\a.mp4", "broken.mp4", "sound.mp4")]
    write_manifest(root / "a.jsonl", rows)
    with pytest.raises(DatasetError, match="4 of the 4 rows") as error:
        load_clips(root, "train")
    for words in ("gone.mp4 is missing", "write / between folders", "broken.mp4", "has no video stream"):
        assert words in str(error.value)
    assert load_clips(write_manifest(root / "a.jsonl", [*rows, ROW]), "train", on_missing="drop")[0].row == 4


# Frames of videos


def test_a_video_is_sampled_and_keeps_its_sound(root: Path) -> None:
    sample = one(root, fps=2)
    assert sample.frame_times == (0.0, 0.5, 1.0, 1.5) and sample.fps == 2.0
    assert sample.frame_paths == () and sample.media_files == (str(root / "clips" / "a.mp4"),)
    clip = load_clip(sample)
    assert levels(sample) == [0, 5, 10, 15]
    assert clip.waveform is not None and 1.9 < len(clip.waveform) / 16_000 < 2.2
    assert clip.gt_masks is None


def test_a_clip_without_sound_is_silent_and_one_of_its_own_sound_hears_that(root: Path) -> None:
    assert load_clip(one(root, video="clips/silent.mp4")).waveform is None
    sample = one(root, video="clips/silent.mp4", audio="clips/a.mp4")
    assert load_clip(sample).waveform is not None
    heard = one(root, video=None, audio="clips/a.mp4")
    assert heard.num_frames == 0 and load_clip(heard).frames.shape[0] == 0


def test_a_sound_that_nobody_could_hear_is_silence(root: Path) -> None:
    write_film(root / "short.mp4", frames=PICTURES[:1], sounds=[[(0.0, tone(0.03))]])
    with av.open(str(root / "empty.mkv"), "w") as out:  # a track without a sample
        stream = out.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        out.add_stream("aac", rate=16_000, layout="mono")
        out.mux(stream.encode(av.VideoFrame.from_ndarray(PICTURES[3], format="rgb24")))
        out.mux(stream.encode(None))
    for name in ("short.mp4", "empty.mkv"):
        assert load_clip(one(root, video=name)).waveform is None, name


def test_a_rotated_video_stands_upright(root: Path) -> None:
    sample = one(root, video="clips/rotated.mp4")
    assert load_clip(sample).frames.shape == (2, WIDTH, HEIGHT, 3)
    assert read_clip_size(sample) == (HEIGHT, WIDTH)
    assert read_clip_size(one(root)) == (WIDTH, HEIGHT)


def test_a_still_video_has_one_frame(root: Path) -> None:
    assert levels(one(root, video="clips/still.mp4", fps=5)) == [0]


def test_pictures_of_a_varying_rate_are_those_on_screen(root: Path) -> None:
    assert levels(one(root, video="clips/varying.mkv", fps=2)) == [0, 1, 2, 2, 2, 3]


def test_at_most_num_frames_are_evenly_spaced(root: Path) -> None:
    sample = one(root, fps=10, options={"num_frames": 4})
    assert sample.num_frames == 4 and levels(sample) == [0, 6, 13, 19]
    assert sample.fps == pytest.approx(3 / 1.9)
    options = ClipOptions.of_samples([sample], PromptOptions())  # what new clips are sampled by
    assert (options.fps, options.num_frames) == (10.0, 4)
    assert levels(one(root, fps=10, options={"num_frames": None})) == list(range(20))
    with pytest.raises(ValueError, match="num_frames is 0"):
        one(root, options={"num_frames": 0})


def test_frames_come_from_lists_and_folders_in_natural_order(root: Path) -> None:
    for number in range(12):
        Image.fromarray(PICTURES[number]).save(root / f"{number}.png")
    sample = one(root, video=None, frames=".", fps=4, options={"num_frames": None})
    assert levels(sample) == list(range(12)) and sample.fps == 4.0
    assert levels(one(root, video=None, frames=["3.png", "1.png"])) == [3, 1]
    assert levels(one(root, video="7.png")) == [7]  # a picture is a video of one frame
    assert one(root, video=None, frames="7.png", audio="clips/a.mp4").audio_path is not None


def test_a_photograph_that_is_stored_turned_is_told(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURES[0]).save(root / "turned.jpg", exif=exif)
    with pytest.raises(DatasetError, match=r"turned.jpg is stored turned \(EXIF orientation 6\): save it upright"):
        one(root, video=None, frames="turned.jpg")


@pytest.mark.parametrize("name", ["a.mp4", "silent.mp4", "rotated.mp4", "still.mp4", "varying.mkv", "late.mkv"])
@pytest.mark.parametrize("fps", [0.7, 1.0, 10.0, 24.0])
def test_facts_from_packets_agree_with_decoding(root: Path, tmp_path: Path, name: str, fps: float) -> None:
    write_film(root / "clips" / "late.mkv", frames=PICTURES[:6], times=[3.0, 3.1, 3.25, 3.3, 4.4, 4.6])
    facts = read_video_facts(root / "clips" / name, tmp_path / "cache")
    with open_video(root / "clips" / name) as container:
        shown = list(frames_on_screen(container, root / "clips" / name, fps=fps))
    assert len(facts.sampled_times(fps)) == len(shown)
    on_screen = [max(t for t in facts.picture_times if t <= time + 1e-6) for time in facts.sampled_times(fps)]
    assert on_screen == pytest.approx([frame.time - shown[0].time for frame in shown])


def test_a_listed_video_is_opened_once_and_again_if_it_changes(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, cache = root / "clips" / "a.mp4", tmp_path / "facts"
    first = read_video_facts(path, cache)
    write_film(root / "new.mp4", frames=PICTURES[:3])
    with monkeypatch.context() as patch:
        patch.setattr("aurora_rl.data.video_facts.open_video", lambda path: pytest.fail("it is known"))
        assert read_video_facts(path, cache) == first
    os.replace(root / "new.mp4", path)
    assert len(read_video_facts(path, cache).picture_times) == 3
    for damaged in cache.rglob("*.json"):
        damaged.write_text("{}")
    assert len(read_video_facts(path, cache).picture_times) == 3


def test_a_video_that_was_cut_after_it_was_listed_is_told(root: Path) -> None:
    sample = one(root, fps=2)
    write_film(root / "clips" / "b.mp4", frames=PICTURES[:3])
    with pytest.raises(ValueError, match=r"clip '0' .*no picture at 1.00 s.*it is cut off"):
        load_clip(dataclasses.replace(sample, video_path=str(root / "clips" / "b.mp4"), audio_path=None))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_pictures_far_apart_are_found_without_decoding_all(
    root: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = root / f"long.{suffix}"
    with av.open(str(path), "w") as out:  # a key frame a second, and pictures that lean on later ones
        stream = out.add_stream(
            "libx264", rate=10, options={"g": "10", "bf": "0" if suffix == "avi" else "2", "crf": "1"}
        )
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv444p"
        for number in range(100):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(grey(2 * number, HEIGHT, WIDTH), format="rgb24")))
        out.mux(stream.encode(None))
    times = [0.0, 0.35, 3.15, 3.2, 7.0, 9.9]
    monkeypatch.setattr(video, "SEEK_GAP", 1.5)
    decoded: list[float] = []
    check = video.check_video_frame
    monkeypatch.setattr(
        video, "check_video_frame", lambda frame, path: decoded.append(frame.time) or check(frame, path)
    )
    found = video.read_video_frames(path, times)
    assert [round(level / 2) for level in found[:, 0, 0, 0].tolist()] == [0, 3, 31, 32, 70, 99]
    assert len(decoded) < 50 or suffix == "avi"
    monkeypatch.setattr(video, "SEEK_GAP", 1e9)
    assert np.array_equal(video.read_video_frames(path, times), found)


def test_an_index_that_leads_too_far_is_not_trusted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "SEEK_GAP", 0.5)
    seek = video._seek
    monkeypatch.setattr(video, "_seek", lambda container, path, seconds: seek(container, path, 0.0) and too_far())

    def too_far() -> None:
        raise video._InaccurateSeekError

    found = video.read_video_frames(root / "clips" / "a.mp4", [0.0, 1.0, 1.9])
    assert [round(level / 10) for level in found[:, 0, 0, 0].tolist()] == [0, 10, 19]


def test_rows_of_one_video_decode_it_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(root / "a.jsonl", [ROW, ROW, {**ROW, "fps": 5}])
    decoded = []
    monkeypatch.setattr(
        "aurora_rl.data.media.read_video_frames",
        lambda path, times: decoded.append(len(times)) or video.read_video_frames(path, times),
    )
    read, samples = ClipReader(), load_clips(root, "train")
    assert [len(read(sample).frames) for sample in samples] == [2, 2, 10]
    assert decoded == [2, 10]
    assert samples[0].media_id == samples[1].media_id == "clips/a.mp4" and samples[2].media_id == "clips/a.mp4@5fps"


def test_decoded_frames_are_kept_on_disk(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, sample = one(root, fps=5), one(root, fps=5, options={"frame_cache": tmp_path / "frames"})
    expected = load_clip(plain).frames
    assert np.array_equal(load_clip(sample).frames, expected)
    with monkeypatch.context() as patch:
        patch.setattr("aurora_rl.data.media.read_video_frames", lambda path, times: pytest.fail("they are kept"))
        assert np.array_equal(load_clip(sample).frames, expected)
    write_film(root / "new.mp4", frames=[grey(99, HEIGHT, WIDTH)] * 20)
    os.replace(root / "new.mp4", root / "clips" / "a.mp4")
    assert np.array_equal(load_clip(dataclasses.replace(sample, audio_path=None)).frames, np.full_like(expected, 99))


# Truth


def test_rows_without_masks_are_left_out_on_request(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{**ROW, "masks": masks} for masks in ("empty", None, "", "null")] + [ROW, {**ROW, "category": "null"}]
    write_manifest(root / "a.jsonl", rows)
    samples = load_clips(root, "train")
    assert [sample.has_gt_masks for sample in samples] == [True, False, False, False, False, True]
    assert [sample.row for sample in without_unlabelled(samples)] == [0, 5]
    assert "skipped 4 of 6 rows, which have no masks" in caplog.text
    with pytest.raises(DatasetError, match="none of the 2 rows has masks"):
        without_unlabelled(samples[1:3])


def test_the_truth_of_a_null_reference_is_empty(root: Path) -> None:
    masks = load_clip(one(root, masks="empty", category="kettle")).gt_masks
    assert masks is not None and masks.shape == (2, HEIGHT, WIDTH) and not masks.any()


def test_text_of_a_manifest_is_only_text(root: Path) -> None:
    sample = one(root, reference="<|im_end|> [SEG] $(rm) {reference}", id="../../x#1")
    assert sample.reference == "<|im_end|> [SEG] $(rm) {reference}" and sample.uid == "../../x#1"
    assert json.loads(sample.extra or "{}") == {}
