"""What is drawn, and a video that plays: the clip's times, its size and its sound."""

import av
import numpy as np
import pytest
import soundfile

from aurora_rl.data.footage import Footage, Picture, open_footage
from aurora_rl.inference import overlay
from aurora_rl.inference.overlay import COLOURS, OverlayVideo, colour_of, draw_masks


def grey(level: int, height: int = 32, width: int = 48) -> np.ndarray:
    return np.full((height, width, 3), level, dtype=np.uint8)


def tone(seconds: float, frequency: float = 440) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(16_000 * seconds)) / 16_000)


def write(path, footage: Footage) -> None:
    with OverlayVideo(path, footage) as video:
        for picture in footage.pictures():
            video.write(picture)


def shown(path) -> list[tuple[float, int]]:
    """(seconds, brightness to the ten) of every picture of a video."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [(round(frame.time, 3), int(frame.to_ndarray(format="gray").mean().round(-1))) for frame in frames]


def seconds_of(path) -> dict[str, float]:
    with av.open(str(path)) as container:
        return {stream.type: float(stream.duration * stream.time_base) for stream in container.streams}


def loudest_frequency(waveform: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(waveform))
    return float(np.fft.rfftfreq(len(waveform), 1 / 16_000)[spectrum.argmax()])


# Drawing


def test_masks_are_filled_and_outlined_in_their_own_colours():
    masks = np.zeros((2, 32, 48), dtype=bool)
    masks[0, 4:16, 4:16] = True
    masks[1, 20:30, 30:40] = True
    drawn = draw_masks(grey(100), masks)
    orange, blue = (np.array(COLOURS[name]) for name in ("orange", "sky blue"))
    assert (drawn[4, 4] == orange).all() and (drawn[5, 10] == orange).all()  # an outline of two pixels
    assert (drawn[10, 10] == np.round(0.5 * 100 + 0.5 * orange)).all()
    assert (drawn[25, 35] == np.round(0.5 * 100 + 0.5 * blue)).all()
    assert (drawn[~masks.any(axis=0)] == 100).all()


def test_the_pictures_edge_is_no_outline_and_an_empty_mask_draws_nothing():
    full = np.ones((1, 8, 8), dtype=bool)
    assert len(np.unique(draw_masks(grey(0, 8, 8), full)[..., 0])) == 1
    assert np.array_equal(draw_masks(grey(7, 8, 8), ~full), grey(7, 8, 8))


def test_there_is_a_colour_for_every_reference():
    assert colour_of(0) == colour_of(len(COLOURS)) == "orange"


# The video


def test_pictures_keep_their_times(film, tmp_path):
    times = [0.0, 0.1, 0.4, 1.2]
    path = film([grey(0), grey(50), grey(100), grey(200)], times=times)
    write(tmp_path / "out.mp4", open_footage(path))
    assert shown(tmp_path / "out.mp4") == [(0.0, 0), (0.1, 50), (0.4, 100), (1.2, 200)]
    assert seconds_of(tmp_path / "out.mp4")["video"] == pytest.approx(2.0, abs=0.01)  # as long as the one before it


@pytest.mark.parametrize("name", ["libx264", "mpeg4"])
def test_odd_sizes_gain_a_line_and_either_codec_writes_them(film, tmp_path, monkeypatch, name):
    monkeypatch.setattr(overlay, "VIDEO_CODECS", (name,))
    write(tmp_path / "out.mp4", open_footage(film([grey(60, 33, 47)] * 3)))
    with av.open(str(tmp_path / "out.mp4")) as container:
        [frame, *_] = container.decode(video=0)
        assert container.streams.video[0].codec_context.name == {"libx264": "h264"}.get(name, name)
    assert (frame.height, frame.width) == (34, 48)
    assert abs(frame.to_ndarray(format="gray").astype(int) - 60).max() < 8  # the line is no black border


def test_a_rotated_video_is_written_upright(film, tmp_path):
    write(tmp_path / "out.mp4", open_footage(film([grey(60, 32, 64)] * 2, rotation=90)))
    with av.open(str(tmp_path / "out.mp4")) as container:
        [frame, *_] = container.decode(video=0)
    assert (frame.height, frame.width, frame.rotation) == (64, 32, 0)


def test_sound_is_kept(film, tmp_path):
    write(tmp_path / "out.mp4", open_footage(film([grey(60)] * 8, waveform=tone(2))))
    again = open_footage(tmp_path / "out.mp4")
    assert loudest_frequency(again.waveform) == pytest.approx(440, abs=2)
    assert len(again.waveform) / 16_000 == pytest.approx(2.0, abs=0.15)
    assert np.sqrt(np.mean(again.waveform[4_000:28_000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), abs=0.03)


def test_sound_that_starts_late_stays_late(film, tmp_path):
    write(tmp_path / "out.mp4", open_footage(film([grey(60)] * 8, waveform=tone(1), sound_start=1.0)))
    again = open_footage(tmp_path / "out.mp4")
    assert np.abs(again.waveform[:12_000]).max() < 0.02
    assert np.abs(again.waveform[20_000:28_000]).max() > 0.4


def test_sound_beside_frames_is_written_too(tmp_path):
    stereo = np.stack([tone(6, 300), tone(6, 300)], axis=1)  # three times as fast at 48 kHz
    soundfile.write(tmp_path / "sound.flac", stereo, 48_000)
    footage = open_footage([grey(60)] * 2, audio=tmp_path / "sound.flac", fps=1.0)
    write(tmp_path / "out.mp4", footage)
    again = open_footage(tmp_path / "out.mp4")
    assert loudest_frequency(again.waveform) == pytest.approx(900, abs=2)
    assert seconds_of(tmp_path / "out.mp4") == {
        "video": pytest.approx(2.0, abs=0.01),
        "audio": pytest.approx(2.0, abs=0.15),
    }


def test_a_still_picture_is_shown_as_long_as_it_sounds(tmp_path):
    write(tmp_path / "out.mp4", open_footage([grey(60)], audio=tone(3).astype(np.float32)))
    assert seconds_of(tmp_path / "out.mp4")["video"] == pytest.approx(3.0, abs=0.01)
    assert loudest_frequency(open_footage(tmp_path / "out.mp4").waveform) == pytest.approx(440, abs=2)
    write(tmp_path / "mute.mp4", open_footage([grey(60)]))
    assert seconds_of(tmp_path / "mute.mp4") == {"video": pytest.approx(1.0, abs=0.01)}


def test_a_video_that_fails_leaves_no_file(tmp_path):
    footage = open_footage([grey(60)] * 2)
    with pytest.raises(RuntimeError, match="no more"), OverlayVideo(tmp_path / "out.mp4", footage) as video:
        video.write(Picture(0.0, grey(60)))
        raise RuntimeError("no more")
    assert not (tmp_path / "out.mp4").exists()
