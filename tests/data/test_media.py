import dataclasses
import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from aurora_rl.data import containers, sound
from aurora_rl.data.containers import MediaError
from aurora_rl.data.media import (
    check_audio,
    load_clip,
    loudness_dbfs,
    read_frame_size,
    read_frames,
    read_mask_size,
    read_masks,
    read_waveform,
)
from aurora_rl.data.sample import AVSample
from aurora_rl.data.video import read_video

WIDTH, HEIGHT = 16, 12


def sine(*, frequency: float = 440.0, amplitude: float = 1.0, seconds: float = 1.0, rate: int = 16_000) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def rms(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


def write_png_header(path: Path, *, width: int, height: int) -> None:
    """A PNG that promises a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")))


@pytest.fixture
def sample(tmp_path: Path) -> AVSample:
    """A clip of 3 frames whose masks mark 4 x 3 pixels in the upper left corner."""
    frame_paths = [tmp_path / f"{index}.jpg" for index in range(3)]
    mask_paths = [tmp_path / f"0000{index}.png" for index in range(3)]
    mask = Image.new("L", (WIDTH, HEIGHT))
    mask.paste(255, (0, 0, 4, 3))
    for frame_path, mask_path in zip(frame_paths, mask_paths, strict=True):
        Image.new("RGB", (WIDTH, HEIGHT), "red").save(frame_path)
        mask.save(mask_path)
    soundfile.write(tmp_path / "audio.wav", sine(seconds=3, amplitude=0.5), 16_000)
    return AVSample(
        uid="abc_cat_1",
        row=15,
        split="train",
        media_id="abc",
        category="cat",
        reference="The cat.",
        fps=1.0,
        frame_paths=tuple(map(str, frame_paths)),
        audio_path=str(tmp_path / "audio.wav"),
        mask_paths=tuple(map(str, mask_paths)),
        origin="metadata.csv:17",
    )


# Frames


def test_frames_are_rgb_in_the_order_given(tmp_path: Path) -> None:
    for name, color in (("a.png", (255, 0, 0)), ("b.png", (0, 0, 255))):
        Image.new("RGB", (WIDTH, HEIGHT), color).save(tmp_path / name)
    frames = read_frames([tmp_path / "b.png", tmp_path / "a.png"])
    assert frames.shape == (2, HEIGHT, WIDTH, 3)
    assert frames.dtype == np.uint8
    assert frames[0, 5, 5].tolist() == [0, 0, 255]
    assert frames[1, 5, 5].tolist() == [255, 0, 0]


def test_a_grey_frame_becomes_rgb(tmp_path: Path) -> None:
    Image.new("L", (WIDTH, HEIGHT), 77).save(tmp_path / "grey.jpg")
    assert read_frames([tmp_path / "grey.jpg"])[0, 0, 0].tolist() == [77, 77, 77]


def test_frames_of_two_sizes_are_an_error_that_names_both_files(tmp_path: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "small.jpg")
    Image.new("RGB", (32, 24)).save(tmp_path / "large.jpg")
    with pytest.raises(MediaError, match=r"small\.jpg has 16x12 pixels but .*large\.jpg has 32x24"):
        read_frames([tmp_path / "small.jpg", tmp_path / "large.jpg"])


def test_no_frames_are_an_error() -> None:
    with pytest.raises(MediaError, match="give at least one"):
        read_frames([])


def test_a_cut_off_frame_is_an_error_and_not_half_grey(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"cut\.jpg"):
        read_frames([tmp_path / "cut.jpg"])


def test_a_16_bit_frame_is_refused_instead_of_saturated(tmp_path: Path) -> None:
    Image.fromarray(np.full((HEIGHT, WIDTH), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(MediaError, match=r"deep\.png has mode I;16"):
        read_frames([tmp_path / "deep.png"])


def test_postscript_is_refused_because_reading_it_runs_a_program(tmp_path: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "frame.jpg", format="EPS")
    with pytest.raises(MediaError, match=r"frame\.jpg: cannot identify image file"):
        read_frames([tmp_path / "frame.jpg"])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])  # over our limit, where Pillow warns, where Pillow raises
def test_an_image_whose_header_is_too_large_is_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    write_png_header(tmp_path / "bomb.png", width=side, height=side)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("the image was decoded"))
    with pytest.raises(MediaError, match=r"bomb\.png.*(limit is 64000000|too large)"):
        read_masks([tmp_path / "bomb.png"])


def test_a_clip_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "0.jpg")
    monkeypatch.setattr(containers, "MAX_CLIP_PIXELS", 2 * WIDTH * HEIGHT)
    assert len(read_frames([tmp_path / "0.jpg"] * 2)) == 2
    with pytest.raises(MediaError, match="576 pixels together: the limit is 384"):
        read_frames([tmp_path / "0.jpg"] * 3)


# Masks


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_a_mask_of_any_mode_is_object_where_it_is_not_zero(tmp_path: Path, mode: str) -> None:
    # 1 in a palette image is the index of a class, and 1 of 255 in a grey one is still object.
    image = Image.new(mode, (WIDTH, HEIGHT))
    if mode == "P":
        image.putpalette([0, 0, 0, 0, 0, 0, 200, 0, 0])  # index 1 looks black like index 0
    image.paste(1, (2, 1, 5, 3))
    image.save(tmp_path / "mask.png")
    masks = read_masks([tmp_path / "mask.png"])
    assert masks.dtype == np.bool_
    assert masks.shape == (1, HEIGHT, WIDTH)
    assert np.argwhere(masks[0]).tolist() == [[y, x] for y in (1, 2) for x in (2, 3, 4)]


def test_a_colour_mask_is_an_error_because_its_zero_is_undefined(tmp_path: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "mask.png")
    with pytest.raises(MediaError, match=r"mask\.png has mode RGB: expected one of L, 1, P"):
        read_masks([tmp_path / "mask.png"])


# Audio


def test_stereo_48_khz_becomes_the_mean_at_16_khz(tmp_path: Path) -> None:
    left, right = sine(amplitude=0.8, rate=48_000), sine(amplitude=0.4, rate=48_000)
    soundfile.write(tmp_path / "audio.wav", np.stack([left, right], axis=1), 48_000)
    waveform = read_waveform(tmp_path / "audio.wav")
    assert waveform.shape == (16_000,)
    assert waveform.dtype == np.float32
    # The mean of the two has amplitude 0.6; the filter needs some samples at the ends to settle.
    np.testing.assert_allclose(waveform[500:-500], sine(amplitude=0.6)[500:-500], atol=1e-3)


def test_what_16_khz_cannot_hold_is_filtered_out_and_not_folded_down(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "audio.wav", sine(frequency=10_000, amplitude=0.5, rate=48_000), 48_000)
    assert rms(read_waveform(tmp_path / "audio.wav")[500:-500]) < 1e-3


def test_the_sampling_rate_can_be_chosen(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "audio.wav", sine(seconds=0.5), 16_000)
    assert read_waveform(tmp_path / "audio.wav", sampling_rate=8_000).shape == (4_000,)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_compressed_audio_is_read(tmp_path: Path, suffix: str) -> None:
    soundfile.write(tmp_path / f"audio.{suffix}", sine(amplitude=0.5), 16_000)
    waveform = read_waveform(tmp_path / f"audio.{suffix}")
    assert abs(len(waveform) - 16_000) < 1_200  # mp3 pads to whole frames
    assert rms(waveform[2_000:14_000]) == pytest.approx(0.5 / np.sqrt(2), abs=0.01)


def test_digital_silence_is_a_valid_clip(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "muted.wav", np.zeros(16_000), 16_000)
    waveform = read_waveform(tmp_path / "muted.wav")
    assert waveform.shape == (16_000,)
    assert not waveform.any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_audio_that_is_not_finite_is_an_error(tmp_path: Path, value: float) -> None:
    samples = sine().astype(np.float32)
    samples[100] = value
    soundfile.write(tmp_path / "audio.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(MediaError, match=r"audio\.wav holds values that are not finite"):
        read_waveform(tmp_path / "audio.wav")


def test_integers_stored_as_floats_are_an_error_and_not_clipped(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "audio.wav", sine(amplitude=32_767), 16_000, subtype="FLOAT")
    with pytest.raises(MediaError, match=r"audio\.wav has a peak of 32767: expected values in \[-1, 1\]"):
        read_waveform(tmp_path / "audio.wav")


def test_a_little_overshoot_is_clipped_to_full_scale(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "audio.wav", sine(amplitude=1.1), 16_000, subtype="FLOAT")
    assert read_waveform(tmp_path / "audio.wav").max() == 1.0


def test_audio_without_samples_is_an_error(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "audio.wav", np.zeros(0), 16_000)
    with pytest.raises(MediaError, match=r"audio\.wav is empty"):
        read_waveform(tmp_path / "audio.wav")


def test_a_cut_off_wav_is_an_error(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "audio.wav", sine(), 16_000)
    data = (tmp_path / "audio.wav").read_bytes()
    (tmp_path / "audio.wav").write_bytes(data[:20_044])
    with pytest.raises(MediaError, match=r"audio\.wav is cut off: 20000 bytes of 32000"):
        read_waveform(tmp_path / "audio.wav")


def test_a_streamed_wav_of_unknown_length_is_read_whole(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "audio.wav", sine(), 16_000)
    data = (tmp_path / "audio.wav").read_bytes()
    unknown = b"\xff\xff\xff\xff"
    (tmp_path / "audio.wav").write_bytes(data[:4] + unknown + data[8:40] + unknown + data[44:])
    assert read_waveform(tmp_path / "audio.wav").shape == (16_000,)


def test_audio_longer_than_an_hour_is_refused_by_its_header(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "audio.wav", np.zeros(3_601), 1)  # one sample a second
    with pytest.raises(MediaError, match=r"audio\.wav is 3601 s long: the limit is 3600 s"):
        read_waveform(tmp_path / "audio.wav")


# Loudness


@pytest.mark.parametrize(
    ("values", "rate"),
    [
        (np.zeros(0), 16_000),
        (np.zeros(1), 192_000),  # resampled to nothing
        (np.full(sound.AUDIO_BLOCK + 1, np.inf), 16_000),
        (np.append(np.zeros(sound.AUDIO_BLOCK), 5.0), 16_000),  # too loud in its second block
    ],
)
def test_audio_is_checked_for_all_that_reading_it_refuses(tmp_path: Path, values: np.ndarray, rate: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, values, rate, "FLOAT")
    with pytest.raises(MediaError) as read_error:
        read_waveform(path)
    with pytest.raises(MediaError) as check_error:
        check_audio(path)
    assert str(check_error.value) == str(read_error.value)


@pytest.mark.parametrize("num_samples", [1, sound.AUDIO_BLOCK, sound.AUDIO_BLOCK + 1])
def test_audio_that_can_be_read_passes_the_check(tmp_path: Path, num_samples: int) -> None:
    soundfile.write(tmp_path / "a.wav", np.full((num_samples, 2), 0.5), 16_000)
    assert read_waveform(tmp_path / "a.wav").size == num_samples
    check_audio(tmp_path / "a.wav")


def test_sizes_come_from_headers_and_are_width_and_height(tmp_path: Path) -> None:
    write_png_header(tmp_path / "a.png", width=40, height=30)  # its pixels could not be decoded
    assert read_frame_size(tmp_path / "a.png") == (40, 30)
    assert read_mask_size(tmp_path / "a.png") == (40, 30)


def test_a_full_scale_sine_is_3_01_dbfs_below_a_square_wave() -> None:
    assert loudness_dbfs(sine()) == pytest.approx(-3.01, abs=0.01)
    assert loudness_dbfs(np.sign(sine() + 1e-9)) == pytest.approx(0.0, abs=1e-6)


def test_digital_silence_is_minus_infinity() -> None:
    assert loudness_dbfs(np.zeros(16_000, dtype=np.float32)) == -np.inf


def test_the_loudest_100_ms_count_wherever_they_lie() -> None:
    waveform = np.zeros(16_000, dtype=np.float32)
    waveform[1_001 : 1_001 + 1_600] = 0.1  # 0.1 squared is 0.01, or -20 dB
    assert loudness_dbfs(waveform) == pytest.approx(-20.0, abs=1e-3)
    waveform[1_001 + 800 :] = 0.0  # half the window: 3.01 dB less
    assert loudness_dbfs(waveform) == pytest.approx(-23.01, abs=0.01)


def test_a_waveform_shorter_than_the_window_is_taken_whole() -> None:
    assert loudness_dbfs(np.full(7, 0.1)) == pytest.approx(-20.0, abs=1e-6)


@pytest.mark.parametrize("shape", [(0,), (1, 16_000)])
def test_loudness_of_another_shape_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(N,\)"):
        loudness_dbfs(np.zeros(shape))


# Clips


def test_a_clip_holds_frames_audio_and_masks(sample: AVSample) -> None:
    clip = load_clip(sample)
    assert clip.frames.shape == (3, HEIGHT, WIDTH, 3)
    assert clip.waveform.shape == (48_000,)
    assert rms(clip.waveform) == pytest.approx(0.5 / np.sqrt(2), abs=1e-3)
    assert clip.gt_masks.shape == (3, HEIGHT, WIDTH)
    assert clip.gt_masks.sum(axis=(1, 2)).tolist() == [12, 12, 12]
    assert clip.gt_masks[0, 2, 3] and not clip.gt_masks[0, 3, 3]


def test_clips_of_one_size_stack_into_a_batch(sample: AVSample) -> None:
    clips = [load_clip(row) for row in (sample, dataclasses.replace(sample, row=16))]
    assert np.stack([clip.frames for clip in clips]).shape == (2, 3, HEIGHT, WIDTH, 3)
    assert np.stack([clip.gt_masks for clip in clips]).shape == (2, 3, HEIGHT, WIDTH)


def test_a_null_reference_without_masks_has_empty_ones_of_the_frames_size(sample: AVSample) -> None:
    clip = load_clip(dataclasses.replace(sample, category="null", mask_paths=()))
    assert clip.gt_masks.shape == (3, HEIGHT, WIDTH)
    assert not clip.gt_masks.any()


def test_a_null_reference_with_empty_masks_loads(sample: AVSample) -> None:
    for path in sample.mask_paths:
        Image.new("L", (WIDTH, HEIGHT)).save(path)
    assert not load_clip(dataclasses.replace(sample, category="null")).gt_masks.any()


def expect_clip_error(sample: AVSample, *expected: str) -> None:
    """Loading fails with a message that names the sample, its line in metadata.csv and what is expected."""
    with pytest.raises(MediaError) as error:
        load_clip(sample)
    for text in (repr(sample.uid), f"(row {sample.row}, metadata.csv:{sample.row + 2})", *expected):
        assert text in str(error.value)


def test_a_null_reference_with_an_object_in_its_mask_is_an_error(sample: AVSample) -> None:
    Image.new("L", (WIDTH, HEIGHT)).save(sample.mask_paths[0])
    expect_clip_error(dataclasses.replace(sample, category="null"), sample.mask_paths[1], "marks 12 pixels")


@pytest.mark.parametrize("mask_paths", [(), ("", "", "")])
def test_a_row_without_masks_has_no_truth(sample: AVSample, mask_paths: tuple[str, ...]) -> None:
    row = dataclasses.replace(sample, mask_paths=mask_paths)
    clip = load_clip(row)
    assert not row.has_gt_masks
    assert clip.gt_masks is None and clip.annotated_frames is None
    assert clip.frames.shape == (3, HEIGHT, WIDTH, 3)


def test_only_annotated_frames_have_masks(sample: AVSample) -> None:
    first, _, last = sample.mask_paths
    clip = load_clip(dataclasses.replace(sample, mask_paths=(first, "", last)))
    assert clip.annotated_frames == (0, 2)
    assert clip.gt_masks.sum(axis=(1, 2)).tolist() == [12, 12]
    assert len(clip.frames) == 3


def test_a_null_references_mask_is_named_where_other_frames_are_not_annotated(sample: AVSample) -> None:
    row = dataclasses.replace(sample, category="null", mask_paths=("", "", sample.mask_paths[2]))
    expect_clip_error(row, sample.mask_paths[2], "marks 12 pixels")


def test_a_clip_may_be_sound_alone(sample: AVSample) -> None:
    for category in ("cat", "null"):
        clip = load_clip(dataclasses.replace(sample, category=category, frame_paths=(), mask_paths=()))
        assert clip.frames.shape == (0, 0, 0, 3)
        assert len(clip.waveform) == 48_000
        assert clip.gt_masks is None


def test_a_still_picture_is_a_clip_of_one_frame(sample: AVSample) -> None:
    paths = {"frame_paths": sample.frame_paths[:1], "mask_paths": sample.mask_paths[:1]}
    clip = load_clip(dataclasses.replace(sample, audio_path=None, **paths))
    assert clip.frames.shape == (1, HEIGHT, WIDTH, 3)
    assert clip.gt_masks.shape == (1, HEIGHT, WIDTH)


def test_a_row_without_frames_and_sound_is_an_error(sample: AVSample) -> None:
    row = dataclasses.replace(sample, frame_paths=(), mask_paths=(), audio_path=None)
    expect_clip_error(row, "has neither frames nor sound")


def test_nine_masks_for_ten_frames_are_an_error(sample: AVSample) -> None:
    ten_frames = dataclasses.replace(
        sample, frame_paths=sample.frame_paths[:1] * 10, mask_paths=sample.mask_paths[:1] * 9
    )
    folder = str(Path(sample.mask_paths[0]).parent)
    expect_clip_error(ten_frames, f"has 9 masks ({folder}) for 10 frames: add the missing mask or drop the row")


def test_a_mask_of_another_size_than_the_frames_is_an_error(sample: AVSample) -> None:
    for path in sample.mask_paths:
        Image.new("L", (8, 6)).save(path)
    expect_clip_error(sample, sample.mask_paths[0], "masks of 8x6 pixels", "frames of 16x12")


def test_one_mask_of_another_size_is_an_error(sample: AVSample) -> None:
    Image.new("L", (8, 6)).save(sample.mask_paths[1])
    expect_clip_error(sample, f"{sample.mask_paths[1]} has 8x6")


def test_a_missing_frame_is_an_error(sample: AVSample) -> None:
    Path(sample.frame_paths[2]).unlink()
    expect_clip_error(sample, sample.frame_paths[2], "does not exist", "restore it or drop the row")


def test_an_unreadable_frame_is_an_error(sample: AVSample) -> None:
    Path(sample.frame_paths[1]).write_text("not an image")
    expect_clip_error(sample, f"cannot read the image {sample.frame_paths[1]}", "expected JPEG or PNG or WEBP")


def test_an_unreadable_wav_is_an_error_and_not_silence(sample: AVSample) -> None:
    Path(sample.audio_path).write_bytes(b"RIFF\x00\x00\x00\x00WAVEjunk")
    expect_clip_error(sample, f"cannot read the audio {sample.audio_path}", "replace the file or drop the row")


def test_a_missing_wav_is_an_error_and_not_silence(sample: AVSample) -> None:
    Path(sample.audio_path).unlink()
    expect_clip_error(sample, sample.audio_path, "does not exist")


# Video


def write_video(
    path: Path,
    *,
    times: tuple[int, ...] = tuple(range(8)),
    rate: int = 4,
    with_audio: bool = True,
    seconds: float = 2.0,
) -> None:
    """A square that moves 6 pixels a frame to the right, shown at `times` / `rate` seconds, and a 440 Hz tone."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=rate)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("aac", rate=48_000, layout="stereo") if with_audio else None
        for index, time in enumerate(times):
            picture = np.zeros((48, 64, 3), dtype=np.uint8)
            picture[8:16, 6 * index : 6 * index + 8] = 255
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = time
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            tone = sine(amplitude=0.5, seconds=seconds, rate=48_000).astype(np.float32)
            tone_frame = av.AudioFrame.from_ndarray(np.stack([tone, tone]), format="fltp", layout="stereo")
            tone_frame.rate = 48_000
            container.mux(audio.encode(tone_frame))
            container.mux(audio.encode(None))


def square_index(picture: np.ndarray) -> int:
    """Which source frame of `write_video` a picture is."""
    columns = np.flatnonzero(picture[10, :, 0] > 128)
    return round(columns[0] / 6)


def test_a_video_is_read_at_the_rate_asked_for(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4")
    frames, waveform = read_video(tmp_path / "clip.mp4", fps=2)
    assert frames.shape == (4, 48, 64, 3)
    assert [square_index(frame) for frame in frames] == [0, 2, 4, 6]
    assert waveform is not None and waveform.dtype == np.float32
    assert len(waveform) == pytest.approx(32_000, abs=2_000)  # AAC adds a frame of 1024 samples at each end
    tone = waveform[8_000:24_000]
    assert rms(tone) == pytest.approx(0.5 / np.sqrt(2), abs=0.02)
    assert np.abs(np.fft.rfft(tone)).argmax() == 440  # one second: bin k is k Hz


def test_a_rate_above_the_files_own_repeats_what_is_on_screen(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", times=(0, 1))
    frames, _ = read_video(tmp_path / "clip.mp4", fps=8)
    assert [square_index(frame) for frame in frames] == [0, 0, 1, 1]


def test_frames_follow_time_stamps_and_not_counts(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", times=(0, 1, 6, 7))  # the second picture stays from 0.25 s to 1.5 s
    frames, _ = read_video(tmp_path / "clip.mp4", fps=2)
    assert [square_index(frame) for frame in frames] == [0, 1, 1, 2]


def test_a_video_shorter_than_one_period_gives_its_first_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", times=(0, 1))
    frames, _ = read_video(tmp_path / "clip.mp4", fps=1)
    assert [square_index(frame) for frame in frames] == [0]


def test_a_video_filmed_upright_is_turned_upright(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4")
    data = bytearray((tmp_path / "clip.mp4").read_bytes())
    matrix_at = data.index(b"tkhd") + 44  # ISO 14496-12, track header box version 0; the video track comes first
    data[matrix_at : matrix_at + 36] = struct.pack(">9i", 0, 65_536, 0, -65_536, 0, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    straight, _ = read_video(tmp_path / "clip.mp4", fps=2)
    turned, _ = read_video(tmp_path / "turned.mp4", fps=2)
    assert turned.shape == (4, 64, 48, 3)
    # This matrix maps a stored pixel (x, y) to (-y, x): a quarter turn clockwise.
    np.testing.assert_array_equal(turned, np.rot90(straight, k=-1, axes=(1, 2)))


def test_a_video_without_sound_is_an_error_that_says_so(tmp_path: Path) -> None:
    write_video(tmp_path / "mute.mp4", with_audio=False)
    with pytest.raises(MediaError, match=r"mute\.mp4 has no audio stream"):
        read_video(tmp_path / "mute.mp4", fps=2)
    frames, waveform = read_video(tmp_path / "mute.mp4", fps=2, require_audio=False)
    assert len(frames) == 4
    assert waveform is None


def test_a_sound_file_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        audio = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(sine()[None].astype(np.float32), format="fltp", layout="mono")
        frame.rate = 16_000
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    with pytest.raises(MediaError, match=r"sound\.mp4 has no video stream"):
        read_video(tmp_path / "sound.mp4", fps=2)


def test_an_unreadable_video_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_text("not a video")
    with pytest.raises(MediaError, match=r"cannot read the video .*clip\.mp4"):
        read_video(tmp_path / "clip.mp4", fps=2)


@pytest.mark.parametrize(
    "playlist",
    [
        "ffconcat version 1.0\nfile secret.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    ],
)
def test_a_playlist_is_refused_because_it_opens_other_files(tmp_path: Path, playlist: str) -> None:
    write_video(tmp_path / "secret.mp4")
    (tmp_path / "clip.mp4").write_text(playlist)
    with pytest.raises(MediaError, match=r"cannot read the video .*clip\.mp4"):
        read_video(tmp_path / "clip.mp4", fps=2)


def test_an_address_is_no_file() -> None:
    with pytest.raises(MediaError, match="does not exist or is no plain file"):
        read_video("http://localhost/clip.mp4", fps=2)


def test_a_video_longer_than_an_hour_is_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", times=(0, 4 * 3_601), with_audio=False)
    with pytest.raises(MediaError, match=r"clip\.mp4 is 3601 s long: the limit is 3600 s"):
        read_video(tmp_path / "clip.mp4", fps=2, require_audio=False)


@pytest.mark.parametrize("fps", [0, -1, float("nan")])
def test_a_rate_that_is_not_positive_is_an_error(tmp_path: Path, fps: float) -> None:
    with pytest.raises(ValueError, match="positive number of frames"):
        read_video(tmp_path / "clip.mp4", fps=fps)
