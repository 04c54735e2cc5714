"""Rows of one clip decode its frames and its sound once; another clip, and files that have changed, are read."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from aurora_rl.data import clip_reader
from aurora_rl.data.clip_reader import ClipReader
from aurora_rl.data.containers import MediaError
from aurora_rl.data.media import load_clip, read_media
from aurora_rl.data.sample import AVClip, AVSample


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Clips that were decoded, in order."""
    clips: list[str] = []

    def counted(sample: AVSample) -> tuple[np.ndarray, np.ndarray | None]:
        clips.append(sample.media_id)
        return read_media(sample)

    monkeypatch.setattr(clip_reader, "read_media", counted)
    return clips


def assert_same(clip: AVClip, expected: AVClip) -> None:
    for field in dataclasses.fields(AVClip):
        np.testing.assert_array_equal(getattr(clip, field.name), getattr(expected, field.name))


def test_rows_of_one_clip_decode_it_once_and_have_masks_of_their_own(
    train_samples: list[AVSample], decoded: list[str]
) -> None:
    read = ClipReader()
    rows = train_samples[:4]
    assert [row.media_id for row in rows] == [rows[0].media_id] * 2 + [rows[2].media_id] * 2
    for row in rows:
        assert_same(read(row), load_clip(row))
    assert decoded == [rows[0].media_id, rows[2].media_id]


def test_one_clip_is_remembered_and_no_more(train_samples: list[AVSample], decoded: list[str]) -> None:
    read = ClipReader()
    for row in (train_samples[0], train_samples[2], train_samples[1]):
        assert_same(read(row), load_clip(row))
    assert len(decoded) == 3


def test_rows_that_share_but_a_part_of_a_clip_are_read(train_samples: list[AVSample], decoded: list[str]) -> None:
    read, whole = ClipReader(), train_samples[0]
    fewer = dataclasses.replace(whole, frame_paths=whole.frame_paths[:1], mask_paths=whole.mask_paths[:1])
    silent = dataclasses.replace(whole, audio_path=None)
    for row in (whole, fewer, whole, silent):
        assert_same(read(row), load_clip(row))
    assert len(decoded) == 4


def test_a_file_that_has_changed_is_read_anew(
    train_samples: list[AVSample], decoded: list[str], tmp_path: Path
) -> None:
    sound = tmp_path / "sound.wav"
    sound.write_bytes(Path(str(train_samples[0].audio_path)).read_bytes())
    row, read = dataclasses.replace(train_samples[0], audio_path=str(sound)), ClipReader()
    read(row)
    os.utime(sound, (1, 1))
    read(row)
    assert len(decoded) == 2


def test_an_error_is_not_remembered_and_names_row_and_file(train_samples: list[AVSample], tmp_path: Path) -> None:
    sound = tmp_path / "sound.wav"
    row, read = dataclasses.replace(train_samples[0], audio_path=str(sound)), ClipReader()
    for content in (None, b"no sound"):
        if content is not None:
            sound.write_bytes(content)
        with pytest.raises(MediaError, match=f"{row.uid}.*sound.wav"):
            read(row)
    sound.write_bytes(Path(str(train_samples[0].audio_path)).read_bytes())
    assert_same(read(row), load_clip(train_samples[0]))
