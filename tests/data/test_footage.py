"""Clips as users have them: every frame at its time, upright, at a bearable size, and never all at once."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from aurora_rl.data.containers import MediaError
from aurora_rl.data.footage import limited_size, open_footage
from aurora_rl.data.video import read_video


def grey(level: int, height: int = 32, width: int = 48) -> np.ndarray:
    return np.full((height, width, 3), level, dtype=np.uint8)


def levels(pictures) -> list[int]:
    """Brightness of each picture, to the ten."""
    return [int(picture.pixels.mean().round(-1)) for picture in pictures]


def tone(seconds: float, amplitude: float = 0.5) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * 440 * np.arange(round(16_000 * seconds)) / 16_000)


# Videos


def test_frames_of_a_variable_rate_are_sampled_by_their_time_stamps(film):
    path = film([grey(0), grey(50), grey(100), grey(200)], times=[0.0, 0.1, 0.4, 1.2])
    sampled = list(open_footage(path).sampled(2.0))
    assert [picture.time for picture in sampled] == [0.0, 0.5, 1.0]
    assert levels(sampled) == [0, 100, 100]  # the frame of 0.4 s stays on screen until 1.2 s


def test_every_picture_comes_at_its_time(film):
    pictures = list(open_footage(film([grey(0), grey(50), grey(100)], times=[0.0, 0.1, 0.4])).pictures())
    assert [round(picture.time, 3) for picture in pictures] == [0.0, 0.1, 0.4]
    assert levels(pictures) == [0, 50, 100]


def test_frames_are_those_of_read_video(film):
    noise = np.random.default_rng(0).integers(0, 256, (8, 32, 48, 3), dtype=np.uint8)
    path = film(list(noise), waveform=tone(2))
    frames, waveform = read_video(path, fps=2)
    footage = open_footage(path)
    assert np.array_equal(np.stack([picture.pixels for picture in footage.sampled(2)]), frames)
    assert np.array_equal(footage.waveform, waveform)


@pytest.mark.parametrize(("rotation", "corner"), [(90, (0, 0)), (-90, (-1, -1)), (180, (-1, 0))])
def test_a_phone_video_filmed_sideways_stands_upright(film, rotation, corner):
    stored = grey(0, 32, 64)
    stored[:16, 48:] = 255  # above on the right; a quarter turn counter-clockwise brings it above on the left
    footage = open_footage(film([stored] * 4, rotation=rotation))
    turned = (32, 64) if rotation == 180 else (64, 32)
    assert footage.own_size == footage.frame_size == turned
    for picture in (*footage.pictures(), *footage.sampled(1.0)):
        assert picture.pixels.shape == (*turned, 3)
        quarters = {
            (row, column): picture.pixels[row * 16 :, column * 16 :][:16, :16].mean()
            for row, column in [(0, 0), (turned[0] // 16 - 1, turned[1] // 16 - 1), (turned[0] // 16 - 1, 0)]
        }
        bright = max(quarters, key=lambda place: quarters[place])
        assert (bright[0] > 0, bright[1] > 0) == (corner[0] < 0, corner[1] < 0)


def test_4k_is_scaled_down_while_it_is_decoded(film):
    picture = grey(40, 2160, 3840)
    picture[:, 1920:] = 200
    footage = open_footage(film([picture, picture]))
    assert footage.own_size == (2160, 3840)
    assert footage.frame_size == (720, 1280)
    tracemalloc.start()
    sampled = list(footage.sampled(4.0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [each.pixels.shape for each in sampled] == [(720, 1280, 3)] * 2
    assert abs(sampled[0].pixels[:, :640].mean() - 40) < 2
    assert abs(sampled[0].pixels[:, 640:].mean() - 200) < 2
    assert peak < 3 * 720 * 1280 * 3  # a single picture of 4K would take nine of these


def test_a_rotated_video_is_scaled_down_upright(film):
    footage = open_footage(film([grey(9, 60, 100)], rotation=90), max_side=50)
    assert footage.frame_size == (50, 30)
    assert [picture.pixels.shape for picture in footage.pictures()] == [(50, 30, 3)]


def test_a_long_video_is_never_in_memory_as_a_whole(film):
    path = film([grey(i, 180, 320) for i in range(60)])
    tracemalloc.start()
    for _ in open_footage(path).pictures():
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * 180 * 320 * 3


def test_odd_sizes_are_kept(film):
    footage = open_footage(film([grey(9, 33, 47)] * 2))
    assert [picture.pixels.shape for picture in footage.pictures()] == [(33, 47, 3)] * 2


def test_size_is_limited_by_the_longest_side_and_never_raised():
    assert limited_size((1080, 1920), 1280) == (720, 1280)
    assert limited_size((1920, 1080), 1280) == (1280, 720)
    assert limited_size((64, 48), 1280) == (64, 48)
    assert limited_size((1, 4000), 100) == (1, 100)
    with pytest.raises(ValueError, match="max_side is 0"):
        limited_size((2, 2), 0)


def test_a_video_of_one_frame_is_sampled_once(film):
    assert len(list(open_footage(film([grey(9)])).sampled(1.0))) == 1


# Sound


def test_a_video_without_sound_says_so(film):
    footage = open_footage(film([grey(9)] * 4))
    assert footage.waveform is None
    assert footage.notes == ["there is no sound: answered by the pictures alone"]


def test_silence_is_a_sound(film):
    footage = open_footage(film([grey(9)] * 4, waveform=np.zeros(16_000)))
    assert footage.waveform.shape[0] >= 16_000
    assert not footage.waveform.any()
    assert footage.notes == []


def test_sound_that_starts_late_is_heard_late(film):
    footage = open_footage(film([grey(9)] * 8, waveform=tone(1), sound_start=0.5))
    assert footage.sound_start == pytest.approx(0.5, abs=0.1)
    before, after = footage.waveform[:6_000], footage.waveform[10_000:20_000]
    assert np.abs(before).max() < 0.01
    assert np.sqrt(np.mean(after**2)) == pytest.approx(0.5 / np.sqrt(2), abs=0.02)


def test_another_sound_may_take_the_place_of_the_videos_own(film, tmp_path):
    soundfile.write(tmp_path / "other.wav", tone(2, amplitude=0.1), 16_000)
    footage = open_footage(film([grey(9)] * 4, waveform=tone(1)), audio=tmp_path / "other.wav")
    assert len(footage.waveform) == 32_000
    assert footage.sound_path == tmp_path / "other.wav"


def test_sound_too_short_to_be_heard_is_left_out_and_said():
    footage = open_footage([grey(9)], audio=np.zeros(100, np.float32))
    assert footage.waveform is None
    assert footage.notes == ["0.006 s of sound are too short: answered by the pictures alone"]


def test_a_sound_file_of_no_length_is_an_error_that_names_it(tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    with pytest.raises(MediaError, match=r"empty\.wav is empty"):
        open_footage([grey(9)], audio=tmp_path / "empty.wav")


@pytest.mark.parametrize("waveform", [np.zeros((2, 1600)), np.zeros(1600, np.int16), np.full(1600, 2.0), np.zeros(0)])
def test_an_array_that_is_no_waveform_is_refused(waveform):
    with pytest.raises(MediaError, match="the sound"):
        open_footage([grey(9)], audio=waveform)


# Files that are broken


def test_a_video_cut_off_before_its_index_is_an_error(film):
    path = film([grey(i) for i in range(0, 200, 10)], waveform=tone(5))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(MediaError, match=r"cannot read the video .*clip\.mp4.*replace or re-encode"):
        open_footage(path)


@pytest.mark.parametrize("content", [b"", b"no video at all", bytes(4096), b"\x00\x00\x00\x18ftypmp42" + bytes(64)])
def test_a_file_that_is_no_video_is_an_error_that_names_it(tmp_path, content):
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"broken\.mp4"):
        open_footage(path)


def test_a_video_damaged_in_the_middle_is_an_error_that_names_it(film):
    noise = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)
    path = film(list(noise), options={"movflags": "faststart"})  # with its index in front
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MediaError, match=r"cannot read the video .*clip\.mp4"):
        list(open_footage(path).sampled(4.0))


@pytest.mark.parametrize("waveform", [None, tone(4)])
def test_a_video_that_ends_before_its_header_says_is_read_as_far_as_it_goes_and_that_is_said(film, waveform):
    noise = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)
    path = film(list(noise), waveform=waveform, name="clip.mkv")
    footage = open_footage(path)
    assert len(list(footage.sampled(4.0))) == 16
    assert not any("cut off" in note for note in footage.notes)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    footage = open_footage(path)
    assert 0 < len(list(footage.sampled(4.0))) < 12
    assert "s that it promises: it is cut off" in footage.notes[-1]


def test_a_sound_file_is_no_video(tmp_path):
    soundfile.write(tmp_path / "sound.ogg", tone(1), 16_000)
    with pytest.raises(MediaError, match="no video stream"):
        open_footage(tmp_path / "sound.ogg")


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(MediaError, match="nowhere.mp4 does not exist"):
        open_footage(tmp_path / "nowhere.mp4")


# Pictures one by one


def test_a_still_image_is_a_clip_of_one_frame(tmp_path):
    Image.fromarray(grey(70)).save(tmp_path / "photo.png")
    footage = open_footage(tmp_path / "photo.png")
    assert levels(footage.sampled(1.0)) == levels(footage.pictures()) == [70]
    assert footage.waveform is None


def test_a_photograph_stands_upright_as_its_camera_noted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(grey(70, 32, 64)).save(tmp_path / "photo.jpg", exif=exif)
    assert open_footage(tmp_path / "photo.jpg").own_size == (64, 32)


def test_a_damaged_image_is_an_error_that_names_it(tmp_path):
    Image.fromarray(grey(70)).save(tmp_path / "photo.png")
    data = (tmp_path / "photo.png").read_bytes()
    (tmp_path / "photo.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"cannot read the image .*photo\.png"):
        list(open_footage(tmp_path / "photo.png").pictures())


def test_frames_may_be_files_pictures_or_arrays(tmp_path: Path):
    Image.fromarray(grey(10)).save(tmp_path / "a.png")
    footage = open_footage([tmp_path / "a.png", Image.fromarray(grey(20)), grey(30)], fps=2.0)
    assert levels(footage.sampled(2.0)) == [10, 20, 30]
    assert [picture.time for picture in footage.pictures()] == [0.0, 0.5, 1.0]


def test_frames_of_another_rate_are_sampled_by_their_times():
    footage = open_footage([grey(10 * i) for i in range(10)], fps=5.0)
    assert levels(footage.sampled(2.0)) == [0, 20, 50, 70]  # at 0, 0.5, 1 and 1.5 s
    footage = open_footage([grey(0), grey(100)], fps=1.0)
    assert levels(footage.sampled(2.0)) == [0, 0, 100, 100]


def test_frames_of_different_sizes_are_refused():
    with pytest.raises(MediaError, match="frame 1 has 40x30 pixels, but frame 0 48x32"):
        list(open_footage([grey(1), grey(1, 30, 40)]).pictures())


def test_large_frames_are_scaled_down():
    picture = grey(0, 100, 200)
    picture[:, 100:] = 100
    [small] = open_footage([picture], max_side=20).pictures()
    assert small.pixels.shape == (10, 20, 3)
    assert small.pixels[:, :10].max() == 0 and small.pixels[:, 10:].min() == 100


@pytest.mark.parametrize("frames", [[np.zeros((4, 4))], [np.zeros((4, 4, 3))], [np.zeros((4, 4, 4), np.uint8)]])
def test_arrays_that_are_no_pictures_are_refused(frames):
    with pytest.raises(MediaError, match=r"frame 0 is .*: expected \(H, W, 3\) uint8"):
        open_footage(frames)


def test_no_frames_at_all_are_refused():
    with pytest.raises(MediaError, match="there are no frames"):
        open_footage([])
