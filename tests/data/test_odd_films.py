"""Clips as phones, browsers and editors leave them: turned, squeezed, with several tracks, animated, starting late."""

import io
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from aurora_rl.data.containers import MediaError
from aurora_rl.data.footage import open_footage
from aurora_rl.data.media import read_waveform
from aurora_rl.inference.overlay import OverlayVideo
from tests.data.odd_files import ORIENTATIONS, grey, tone, write_film

RATE = 16_000


@pytest.fixture(scope="module")
def quarters() -> np.ndarray:
    """Four quarters of other greys, (32, 48, 3), so that no two of the eight orientations look alike."""
    picture = grey(0)
    picture[:16, :24], picture[:16, 24:], picture[16:, :24], picture[16:, 24:] = 20, 90, 160, 230
    return picture


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_a_clip_and_its_overlay_stand_as_the_display_matrix_says(tmp_path, quarters, matrix):
    footage = open_footage(write_film(tmp_path / "a.mp4", frames=[quarters] * 3, matrix=matrix))
    expected = ORIENTATIONS[matrix](quarters)
    with OverlayVideo(tmp_path / "overlay.mp4", footage) as video:
        for picture in footage.pictures():
            video.write(picture)
    for clip in (footage, open_footage(tmp_path / "overlay.mp4")):
        pictures = [picture.pixels for picture in clip.pictures()]
        assert clip.own_size == expected.shape[:2] and len(pictures) == 3
        middle = [pictures[0][row, column, 0] for row in (4, -5) for column in (4, -5)]  # of each quarter
        assert (
            np.abs(
                np.subtract(middle, [expected[row, column, 0] for row in (4, -5) for column in (4, -5)], dtype=int)
            ).max()
            < 20
        )


@pytest.mark.parametrize(
    "shape, size", [(Fraction(2), (32, 96)), (Fraction(1, 2), (64, 48)), (Fraction(4, 3), (32, 64))]
)
def test_pixels_that_are_not_square_are_shown_square(tmp_path, quarters, shape, size):
    footage = open_footage(write_film(tmp_path / "a.mp4", frames=[quarters] * 3, pixel_shape=shape))
    [first, *_] = footage.pictures()
    assert footage.own_size == first.pixels.shape[:2] == size
    assert abs(int(first.pixels[2, 2, 0]) - 20) < 12 and abs(int(first.pixels[-3, -3, 0]) - 230) < 12


def test_a_turned_clip_of_oblong_pixels_is_widened_before_it_is_turned(tmp_path, quarters):
    film = write_film(tmp_path / "a.mp4", frames=[quarters] * 3, matrix=(0, 1, -1, 0), pixel_shape=Fraction(2))
    footage = open_footage(film)
    assert footage.own_size == next(footage.pictures()).pixels.shape[:2] == (96, 32)


@pytest.mark.parametrize("suffix", ["mp3", "m4a", "flac"])
def test_the_cover_of_a_sound_file_is_no_video(tmp_path, suffix):
    cover = io.BytesIO()
    Image.fromarray(grey(90)).save(cover, "JPEG")
    path = tmp_path / f"song.{suffix}"
    codec, muxer = {"mp3": ("libmp3lame", "mp3"), "m4a": ("aac", "mp4"), "flac": ("flac", "flac")}[suffix]
    with av.open(str(path), "w", format=muxer) as out:
        sound = out.add_stream(codec, rate=44_100, layout="mono")
        picture = out.add_stream("mjpeg", rate=1)
        picture.width, picture.height, picture.pix_fmt = 48, 32, "yuvj420p"
        picture.disposition = Disposition.attached_pic
        samples = np.sin(np.arange(44_100) / 16).astype(np.float32)[None] / 2
        kind = {"libmp3lame": "fltp", "aac": "fltp", "flac": "s16"}[codec]
        if kind == "s16":
            samples = (samples * 32_767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format=kind, layout="mono")
        frame.sample_rate, frame.pts = 44_100, 0
        packets = [*sound.encode(frame), *sound.encode(None)]
        packet = av.Packet(cover.getvalue())
        packet.stream, packet.pts, packet.dts, packet.time_base = picture, 0, 0, Fraction(1, 1)
        out.mux(packet)
        for packet in packets:
            out.mux(packet)
    with pytest.raises(MediaError, match="no video"):
        open_footage(path)
    assert len(read_waveform(path)) == pytest.approx(RATE, abs=2_000)


@pytest.mark.parametrize("default", [0, 1])
def test_the_track_that_players_play_is_heard_and_the_choice_is_told(tmp_path, default):
    sounds = [[(0.0, tone(2, frequency=hertz))] for hertz in (300, 900)]
    film = write_film(tmp_path / "a.mkv", frames=[grey(40)] * 20, sounds=sounds, default_sound=default)
    footage = open_footage(film)
    heard = np.abs(np.fft.rfft(footage.waveform)).argmax() * RATE / len(footage.waveform)
    assert abs(heard - (300, 900)[default]) < 20
    assert [note for note in footage.notes if "2 sound tracks" in note]


def test_of_two_video_tracks_one_is_read_and_the_choice_is_told(tmp_path):
    film = write_film(tmp_path / "a.mkv", frames=[grey(40)] * 5, second_video=[grey(200)] * 5)
    footage = open_footage(film)
    assert abs(int(next(footage.pictures()).pixels.mean()) - 40) < 8
    assert [note for note in footage.notes if "2 video tracks" in note]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_all_pictures_of_an_animation_are_read_at_their_times(tmp_path, name):
    pictures = [Image.fromarray(grey(20 * number)) for number in range(10)]
    pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], duration=500)
    read = list(open_footage(tmp_path / name).pictures())
    assert [picture.time for picture in read] == pytest.approx([0.5 * number for number in range(10)])
    assert [round(picture.pixels.mean() / 20) for picture in read] == list(range(10))
    sampled = list(open_footage(tmp_path / name).sampled(1.0))
    assert [round(picture.pixels.mean() / 20) for picture in sampled] == [0, 2, 4, 6, 8]


def burst(start: float, *, seconds: float = 6.0) -> np.ndarray:
    """Silence with a tone of half a second in it."""
    waveform = np.zeros(round(seconds * RATE))
    waveform[round(start * RATE) : round((start + 0.5) * RATE)] = tone(0.5)
    return waveform


def first_heard(waveform: np.ndarray) -> float:
    return np.flatnonzero(np.abs(waveform) > 0.1)[0] / RATE


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
@pytest.mark.parametrize("pictures_from, sound_from", [(0.0, 0.0), (1.5, 0.0), (0.0, 1.5)])
def test_a_bang_is_heard_when_it_is_seen(tmp_path, suffix, pictures_from, sound_from):
    times = [pictures_from + number / 10 for number in range(60)]
    sound = [(sound_from, burst(4.0 - sound_from, seconds=7.0 - sound_from))]
    film = write_film(tmp_path / f"a.{suffix}", frames=[grey(40)] * 60, times=times, sounds=[sound])
    footage = open_footage(film)
    assert len(list(footage.sampled(10.0))) == 60
    assert first_heard(footage.waveform) == pytest.approx(4.0 - pictures_from, abs=0.05)
    assert not [note for note in footage.notes if "cut off" in note]


def test_silence_stands_in_a_gap_of_a_videos_sound(tmp_path):
    pieces = [(0.0, tone(1.0)), (3.0, tone(1.0))]
    footage = open_footage(write_film(tmp_path / "a.mkv", frames=[grey(40)] * 40, sounds=[pieces]))
    loud = np.abs(footage.waveform) > 0.1
    assert loud[: RATE - 500].any() and not loud[round(1.1 * RATE) : round(2.9 * RATE)].any()
    assert loud[round(3.1 * RATE) :].any()
    assert [note for note in footage.notes if "silence" in note]


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_picture_that_claims_to_be_huge_is_refused(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_that_claims(60_000, 60_000))
    with pytest.raises(MediaError, match="bomb.png"):
        list(open_footage(tmp_path / "bomb.png").pictures())


def test_an_animation_on_a_huge_canvas_is_refused(tmp_path):
    picture = Image.new("P", (8, 8))
    picture.save(tmp_path / "bomb.gif", save_all=True, append_images=[Image.new("P", (8, 8), 1)], duration=100)
    content = bytearray((tmp_path / "bomb.gif").read_bytes())
    content[6:10] = struct.pack("<HH", 65_535, 65_535)  # the canvas
    (tmp_path / "bomb.gif").write_bytes(content)
    with pytest.raises(MediaError, match="bomb.gif"):
        list(open_footage(tmp_path / "bomb.gif").pictures())


def test_a_picture_that_comes_after_a_month_is_refused(tmp_path):
    film = write_film(tmp_path / "a.mkv", frames=[grey(40), grey(80)], times=[0.0, 2_000_000.0])
    with pytest.raises(MediaError, match="a.mkv"):
        list(open_footage(film).sampled(10.0))
