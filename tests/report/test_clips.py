"""Which clips the report shows, and what it embeds of them."""

import base64
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from aurora_rl.data.containers import MediaError
from aurora_rl.data.media import load_clip
from aurora_rl.data.ref_avs import load_ref_avs
from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.evaluation.records import RowResult
from aurora_rl.evaluation.scoring import score_answer
from aurora_rl.report.clips import chain_lines, choose_rows, contact_sheet, mask_overlay, render_clip, waveform_path
from aurora_rl.tasks.reference_segmentation import chain_file

HIT, EXTRA, MISSED = (20, 200, 170), (255, 128, 0), (215, 70, 239)


@pytest.fixture
def sample(tiny_benchmark: Path) -> AVSample:
    return load_ref_avs(
        tiny_benchmark, "test_s", fps=2.0, num_frames=None, chains=chain_file(tiny_benchmark / "chains.jsonl")
    )[0]


def answered(sample: AVSample, *, text: str | None = None, quality: float = 1.0, row: int | None = None) -> RowResult:
    """A result whose masks cover about `quality` of the truth, with the gold chain unless another text is given."""
    gt_masks = load_clip(sample).gt_masks
    if sample.is_null:
        probs = torch.zeros(gt_masks.shape) + (quality < 1) * torch.eye(gt_masks.shape[-1])
    else:
        probs = torch.from_numpy(gt_masks).float()
        probs[:, : round((1 - quality) * gt_masks.shape[1])] = 0
    sample = sample if row is None else dataclasses.replace(sample, row=row)
    return score_answer(sample, sample.chain if text is None else text, probs, gt_masks)


def decode(uri: str) -> bytes:
    return base64.b64decode(uri.split(",", 1)[1])


def test_rows_of_every_kind_are_shown_even_in_a_short_gallery(sample: AVSample, tiny_benchmark: Path):
    null = load_ref_avs(
        tiny_benchmark, "test_n", fps=2.0, num_frames=None, chains=chain_file(tiny_benchmark / "chains.jsonl")
    )[0]
    space = dataclasses.replace(sample, reference_type="space")
    before = [answered(sample, row=0), answered(sample, text="", row=1), answered(space, row=2), answered(space, row=3)]
    after = [answered(sample, text="", row=0), answered(sample, row=1), answered(space, row=2), answered(space, row=3)]
    nulls = [answered(null, row=4), answered(null, quality=0.0, row=5)]
    choices = {
        choice.key.split("#")[1]: choice.reason for choice in choose_rows(before + nulls, after + nulls, num_rows=6)
    }
    assert choices["0"] == "largest loss"
    assert choices["1"] == "largest gain"
    assert choices["4"] == "null, well answered"
    assert choices["5"] == "null, false alarm"
    assert len(choices) == 6


def test_no_row_is_shown_twice_and_no_more_than_asked_for(sample: AVSample):
    rows = [answered(sample, row=row) for row in range(5)]
    keys = [choice.key for choice in choose_rows(rows, rows, num_rows=3)]
    assert len(keys) == len(set(keys)) == 3
    assert len(choose_rows(rows, rows, num_rows=50)) == 5


def test_overlay_tells_right_extra_and_missed_pixels_apart():
    pred_masks, gt_masks = np.zeros((2, 1, 144, 144), dtype=bool)
    gt_masks[0, :, :96] = True
    pred_masks[0, :, 48:] = True
    picture = np.asarray(Image.open(io.BytesIO(decode(mask_overlay(pred_masks, gt_masks)))).convert("RGBA"))
    assert tuple(picture[72, 20, :3]) == MISSED
    assert tuple(picture[72, 70, :3]) == HIT
    assert tuple(picture[72, 120, :3]) == EXTRA
    assert 0 < picture[72, 70, 3] < picture[0, 70, 3] == 255  # see-through inside, an opaque outline


def test_overlay_is_clear_between_frames_and_a_veil_on_them():
    empty = np.zeros((2, 144, 144), dtype=bool)
    picture = np.asarray(Image.open(io.BytesIO(decode(mask_overlay(empty, empty)))).convert("RGBA"))
    assert picture.shape == (144, 2 * 144 + 4, 4)
    assert picture[:, 144:148, 3].max() == 0
    assert set(picture[:, :144, 3].flatten()) == {120}


def test_waveform_of_silence_is_a_line_and_of_full_scale_fills_the_box():
    assert "0.5 19.6" in waveform_path(np.zeros(16_000, dtype=np.float32))
    assert "0.5 1.0" in waveform_path(np.ones(16_000, dtype=np.float32))


def test_each_step_stands_beside_whether_it_is_true(sample: AVSample):
    assert sample.chain is not None and sample.seen is not None
    right = {line.label: line.is_true for line in chain_lines(answered(sample))}
    assert right == {"Look:": True, "Listen:": True, "Read:": None, "Answer:": True}
    wrong = sample.chain.replace("I see", "I see a kettle and")
    assert {line.label: line.is_true for line in chain_lines(answered(sample, text=wrong))}["Look:"] is False


def test_text_without_labels_is_shown_as_it_is(sample: AVSample):
    (line,) = chain_lines(answered(sample, text="\nIt is loud \n"))
    assert (line.label, line.text, line.is_true) == ("", "It is loud", None)


def test_clip_is_rendered_from_its_files(sample: AVSample):
    clip = render_clip(sample, {"SFT": answered(sample, quality=0.5), "GRPO": answered(sample)}, reason="best")
    assert [attempt.name for attempt in clip.attempts] == ["SFT", "GRPO"]
    assert (clip.shown, clip.num_frames) == ((1, 2, 3, 4), 4)
    assert Image.open(io.BytesIO(decode(clip.frames))).size == clip.size == (4 * 64 + 3 * 2, 64)
    waveform, rate = soundfile.read(io.BytesIO(decode(clip.audio)))
    assert len(waveform) / rate == clip.seconds == 2.0
    assert clip.attempts[1].overlay == clip.truth != clip.attempts[0].overlay


def test_clip_without_sound_plays_silence_as_long_as_its_frames(sample: AVSample):
    silent = dataclasses.replace(sample, audio_path=None)
    clip = render_clip(silent, {"GRPO": answered(silent)}, reason="best")
    assert clip.is_silent
    assert clip.seconds == len(sample.frame_paths) / sample.fps


def test_long_large_clip_stays_small(sample: AVSample):
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(0, 255, (1, 720, 1280, 3), dtype=np.uint8), 10, axis=0)
    masks = np.zeros((10, 720, 1280), dtype=bool)
    media = AVClip(frames, rng.uniform(-0.3, 0.3, 160_000).astype(np.float32), masks)
    probs = torch.zeros(10, 720, 1280)
    result = score_answer(sample, "", probs, masks)
    clip = render_clip(sample, {"GRPO": result}, reason="best", load=lambda _: media)
    assert clip.shown == (1, 4, 7, 10)
    assert clip.audio.startswith("data:audio/mpeg;")
    assert sum(map(len, (clip.frames, clip.audio, clip.truth, clip.waveform))) < 240_000  # 24 of them: 5.8 MB


def test_unreadable_media_are_an_error_not_a_blank_picture(sample: AVSample):
    broken = dataclasses.replace(sample, audio_path="/nowhere/audio.wav")
    with pytest.raises(MediaError, match="/nowhere/audio.wav"):
        render_clip(broken, {"GRPO": answered(sample)}, reason="best")


def test_a_contact_sheet_has_frames_truth_and_prediction_below_one_another(sample: AVSample):
    clip = load_clip(sample)
    sheet = contact_sheet(sample, clip, answered(sample, quality=0.0))
    height, width = 128, 4 * 128 + 3 * 2 * round(64 / 40)  # frames of 64 pixels, twice as large
    assert sheet.mode == "RGB" and sheet.size[0] == width and sheet.size[1] == pytest.approx(3 * height, abs=10)
    pixels, truth = np.asarray(sheet), clip.gt_masks[0].repeat(2, 0).repeat(2, 1)
    frame, marked, missed = (pixels[top : top + height, :height] for top in (0, height + 3, 2 * (height + 3)))
    np.testing.assert_array_equal(frame, clip.frames[0].repeat(2, 0).repeat(2, 1))
    assert (marked[truth] == HIT).all(axis=-1).any() and (missed[truth] == MISSED).all(axis=-1).any()
    silent = dataclasses.replace(clip, frames=np.zeros((0, 0, 0, 3), dtype=np.uint8), gt_masks=None)
    assert contact_sheet(sample, silent, dataclasses.replace(answered(sample), J=None)) is None
