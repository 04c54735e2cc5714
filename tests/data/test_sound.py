"""Sound files as they come, honest and damaged: what is read is what was recorded, at its time, or an error."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from aurora_rl.data import containers, sound
from aurora_rl.data.containers import MediaError
from aurora_rl.data.media import check_audio, read_waveform
from tests.data.odd_files import (
    RATE,
    SOUND_KINDS,
    cuts,
    flips,
    holes,
    id3,
    tone,
    write_film,
    write_sound,
    zeroed,
)

SECONDS = 2.0
#: Kinds whose bytes have a checksum, or frames that are counted, so that no changed byte passes.
CHECKED = ("mp3", "mp3-sndfile", "flac", "flac-sndfile", "ogg", "opus")


@pytest.fixture(scope="module")
def noisy() -> np.ndarray:
    """(N,) a tone in noise, so that no frame is like another."""
    noise = np.random.default_rng(0).normal(size=round(RATE * SECONDS))
    return np.clip(tone(SECONDS) + 0.05 * noise, -1, 1)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, noisy: np.ndarray) -> dict[str, bytes]:
    """A file of each kind."""
    folder = tmp_path_factory.mktemp("sounds")
    return {kind: write_sound(folder / kind, kind, noisy).read_bytes() for kind in SOUND_KINDS}


def refused(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    try:
        read_waveform(path)
    except MediaError as error:
        assert str(path) in str(error)
        return True
    return False


# Whole files


@pytest.mark.parametrize("kind", SOUND_KINDS)
@pytest.mark.parametrize("seconds", [0.1, SECONDS])
def test_an_honest_file_of_every_kind_is_read_whole_and_in_its_place(tmp_path: Path, kind: str, seconds: float) -> None:
    wave = tone(seconds, frequency=440.0)
    waveform = read_waveform(write_sound(tmp_path / "a", kind, wave))
    assert len(waveform) / RATE == pytest.approx(seconds, abs=0.08)  # AAC fills its last frame, MP3 and Opus do not
    delay = 1024 / 44_100 if kind == "aac" else 0.0  # ADTS does not tell how much the encoder puts in front
    heard = waveform[round(RATE * delay) :][: len(wave)]
    inner = slice(400, len(wave) - 400)
    assert np.corrcoef(heard[inner], wave[inner][: len(heard[inner])])[0, 1] > 0.97


def test_an_mp3_may_have_tags_and_no_header_of_its_length(tmp_path: Path, noisy: np.ndarray) -> None:
    bare = write_sound(tmp_path / "a.mp3", "mp3", noisy, options={"write_xing": "0", "id3v2_version": "0"}).read_bytes()
    path = tmp_path / "b.mp3"
    for data in (bare, id3() + bare + b"TAG" + bytes(125), bytes(100) + bare):
        path.write_bytes(data)
        assert len(read_waveform(path)) / RATE == pytest.approx(SECONDS, abs=0.1)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("m4a", {"movflags": "faststart"}),
        ("m4a", {"movflags": "frag_keyframe+empty_moov"}),
        ("webm", {"live": "1"}),
    ],
)
def test_files_written_while_they_are_recorded_are_whole(
    tmp_path: Path, noisy: np.ndarray, kind: str, options: dict[str, str]
) -> None:
    path = write_sound(tmp_path / "a", kind, noisy, options=options)
    assert len(read_waveform(path)) / RATE == pytest.approx(SECONDS, abs=0.08)


def test_a_flac_that_does_not_tell_its_length_is_read(tmp_path: Path, honest: dict[str, bytes], noisy) -> None:
    data = bytearray(honest["flac"])
    data[21] &= 0xF0
    data[22:26] = bytes(4)  # the 36 bits of the number of samples
    (tmp_path / "a.flac").write_bytes(data)
    np.testing.assert_allclose(read_waveform(tmp_path / "a.flac"), noisy, atol=1e-4)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM"])
def test_wav_of_every_common_coding_is_read(tmp_path: Path, subtype: str) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1), RATE, subtype=subtype)
    assert len(read_waveform(tmp_path / "a.wav")) / RATE == pytest.approx(1.0, abs=0.1)


# Damage


@pytest.mark.parametrize("kind", SOUND_KINDS)
def test_a_cut_file_of_every_kind_is_an_error(tmp_path: Path, honest: dict[str, bytes], kind: str) -> None:
    passed = [place for place, data in cuts(honest[kind], 12) if not refused(tmp_path / "b", data)]
    assert passed == []


@pytest.mark.parametrize("kind", SOUND_KINDS)
def test_a_file_that_lacks_a_piece_or_has_zeros_there_is_an_error(
    tmp_path: Path, honest: dict[str, bytes], kind: str
) -> None:
    copies = (*holes(honest[kind], 6, length=701), *zeroed(honest[kind], 6, length=700))
    assert [place for place, data in copies if not refused(tmp_path / "b", data)] == []


@pytest.mark.parametrize("kind", CHECKED)
def test_no_changed_byte_passes_where_the_kind_has_checksums(
    tmp_path: Path, honest: dict[str, bytes], kind: str
) -> None:
    passed = [place for place, data in flips(honest[kind], 20) if not refused(tmp_path / "b", data)]
    assert passed == []


def test_checking_finds_the_damage_that_reading_finds(tmp_path: Path, honest: dict[str, bytes]) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(honest["mp3"][:-3000])
    with pytest.raises(MediaError) as read_error:
        read_waveform(path)
    with pytest.raises(MediaError) as check_error:
        check_audio(path)
    assert str(check_error.value) == str(read_error.value)
    assert "cut off" in str(read_error.value) and str(path) in str(read_error.value)


def test_an_mp3_cut_between_two_frames_is_seen_by_its_header(tmp_path: Path, honest: dict[str, bytes]) -> None:
    from aurora_rl.data.damage import _mp3_frame, _start_of_frames

    data = honest["mp3"]
    place = _start_of_frames(data)
    for _ in range(30):
        length, _ = _mp3_frame(data, place)
        place += length
    (tmp_path / "a.mp3").write_bytes(data[:place])
    with pytest.raises(MediaError, match=r"a\.mp3 is cut off or damaged: 29 frames of"):
        read_waveform(tmp_path / "a.mp3")


@pytest.mark.parametrize("name", ["a.raw", "a.wav", "a.mp3", "a"])
@pytest.mark.parametrize(
    "content", [b"", bytes(3200), b"RIFF", b"ID3\x04\0\0\0\0\0\0", b"OggS", b"fLaC", b"\xff\xfb\x90\x00", b"text"]
)
def test_what_is_no_sound_is_an_error_whatever_its_name(tmp_path: Path, name: str, content: bytes) -> None:
    assert refused(tmp_path / name, content)


@pytest.mark.parametrize("format", ["AIFF", "AU", "W64", "RAW"])
def test_kinds_that_are_not_read_are_refused_by_name(tmp_path: Path, format: str) -> None:
    soundfile.write(tmp_path / "a.raw", tone(1), RATE, format=format, subtype="PCM_16")
    with pytest.raises(MediaError, match=r"a\.raw: it is of no known kind: expected WAV, FLAC"):
        read_waveform(tmp_path / "a.raw")


# Time


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_silence_stands_in_a_gap_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    sound._log_once.cache_clear()
    path = write_film(tmp_path / f"a.{suffix}", sounds=[[(0.0, tone(1)), (1.5, tone(1))]])
    with caplog.at_level(logging.WARNING):
        waveform = read_waveform(path)
        read_waveform(path)
    heard = [np.abs(waveform[round(RATE * at) :][:800]).max() > 0.3 for at in (0.5, 0.9, 1.2, 1.4, 1.6, 2.3)]
    assert heard == [True, True, False, False, True, True]
    assert [record.message for record in caplog.records if "gaps" in record.message] == [
        f"{path}: the sound has gaps: silence stands there for {0.5 if suffix == 'mkv' else 0.44:.2f} s"
    ] or suffix == "mp4"  # AAC's frames fill a part of it


def test_sound_that_overlaps_is_heard_once(tmp_path: Path) -> None:
    pieces = [(0.0, tone(1, frequency=300)), (0.6, tone(1, frequency=900))]
    path = write_film(tmp_path / "a.mkv", sounds=[pieces])
    waveform = read_waveform(path)
    assert len(waveform) / RATE == pytest.approx(1.6, abs=0.01)
    before, after = waveform[8_000:15_000], waveform[17_000:24_000]
    for part, frequency in ((before, 300), (after, 900)):
        assert np.abs(np.fft.rfft(part)).argmax() * RATE / len(part) == pytest.approx(frequency, abs=5)
    assert check_audio(path) == ["0.40 s of sound overlap what sounds before them and are left out"]


def test_stereo_that_cancels_out_is_told(tmp_path: Path) -> None:
    for left, right, note in (
        (tone(1), -tone(1), "the channels of the sound cancel out: mixed to one, it is silent"),
        (tone(1), -0.9 * tone(1), "the channels of the sound cancel out: mixed to one, it is 26 dB quieter"),
        (tone(1), tone(1), None),
        (tone(1), 0 * tone(1), None),
        (tone(1), tone(1, frequency=700), None),
        (0 * tone(1), 0 * tone(1), None),
    ):
        soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
        assert check_audio(tmp_path / "a.wav") == ([] if note is None else [note])


# Bounds


def test_an_hour_of_silence_in_a_small_file_is_as_long_as_is_allowed(tmp_path: Path, monkeypatch) -> None:
    path = write_sound(tmp_path / "a.flac", "flac", np.zeros(RATE * 4))
    assert len(read_waveform(path)) == RATE * 4
    data = bytearray(path.read_bytes())
    data[22:26] = (10**6).to_bytes(4, "big")  # a promise is no length, and not kept
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"cut off or damaged: 4\.00 s of at least 62\.50 s"):
        read_waveform(path)


def test_a_gap_of_a_week_is_refused_before_any_silence_is_made(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mkv", sounds=[[(0.0, tone(0.1)), (600_000.0, tone(0.1))]])
    with pytest.raises(MediaError, match=r"is 600000 s long: the limit is 3600 s"):
        read_waveform(path)


def test_sound_decoded_in_vain_counts_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_film(tmp_path / "a.mkv", sounds=[[(0.0, tone(1))] * 5])  # five times the same second
    assert len(read_waveform(path)) == RATE
    with sound.open_sound(path) as opened:
        opened.max_seconds = 3.0
        with pytest.raises(MediaError, match="is 3 s long: the limit is 3 s"):
            list(opened.blocks())


def test_thousands_of_tiny_packets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "FREE_PACKETS", 100)
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        track = out.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for number in range(400):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, number, Fraction(1, RATE)
            out.mux(track.encode(frame))
    with pytest.raises(MediaError, match=r"a\.mkv has \d+ packets in its first 0\.0 s: the limit is 2000 a second"):
        read_waveform(path)


def test_many_channels_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((100, 200)), RATE)
    assert len(read_waveform(tmp_path / "a.wav")) == 100  # read block by block
