import dataclasses

import numpy as np
import pytest

from aurora_rl.data.media import load_clip, loudness_dbfs
from aurora_rl.evaluation.ablations import ABLATIONS, Ablation, blank, mute, shuffle_text


def test_muted_clip_is_silent_and_otherwise_the_same(train_samples):
    clip = load_clip(train_samples[0])
    muted = mute(clip)
    assert loudness_dbfs(clip.waveform) > -60
    assert loudness_dbfs(muted.waveform) < -60
    assert muted.waveform.shape == clip.waveform.shape
    assert muted.waveform.dtype == np.float32
    assert np.array_equal(muted.frames, clip.frames)
    assert np.array_equal(muted.gt_masks, clip.gt_masks)


def test_clip_without_sound_is_not_muted(train_samples):
    clip = load_clip(dataclasses.replace(train_samples[0], audio_path=None))
    assert mute(clip) is clip
    assert clip.waveform is None


def test_blank_clip_shows_one_grey_and_otherwise_the_same(train_samples):
    clip = load_clip(train_samples[0])
    blanked = blank(clip)
    assert blanked.frames.shape == clip.frames.shape
    assert blanked.frames.dtype == np.uint8
    assert set(np.unique(blanked.frames)) == {128}
    assert np.array_equal(blanked.waveform, clip.waveform)
    assert np.array_equal(blanked.gt_masks, clip.gt_masks)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 28])
def test_every_question_is_asked_once_and_of_another_sample(train_samples, count):
    samples = [dataclasses.replace(s, reference=f"question {i}") for i, s in enumerate(train_samples[:count])]
    shuffled = shuffle_text(samples)
    asked = [sample.reference for sample in shuffled]
    assert sorted(asked) == sorted(sample.reference for sample in samples)
    assert all(new.reference != old.reference for new, old in zip(shuffled, samples, strict=True))


def test_shuffled_text_moves_to_another_clip(train_samples):
    """Half the list on: the rows of one clip stand side by side, and its other questions fit it half as well."""
    media_of = {sample.reference: sample.media_id for sample in train_samples}
    shuffled = shuffle_text([dataclasses.replace(s, reference=s.uid) for s in train_samples])
    media_of = {sample.uid: sample.media_id for sample in train_samples}
    assert all(media_of[sample.reference] != sample.media_id for sample in shuffled)


def test_truth_stays_when_the_text_is_shuffled(train_samples):
    for new, old in zip(shuffle_text(train_samples), train_samples, strict=True):
        assert dataclasses.replace(new, reference=old.reference) == old


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_samples_to_shuffle_stay(train_samples, count):
    assert shuffle_text(train_samples[:count]) == train_samples[:count]


def test_no_ablation_changes_nothing(train_samples):
    ablation = Ablation()
    found, expected = ablation.load(train_samples[0]), load_clip(train_samples[0])
    for field in dataclasses.fields(expected):
        assert np.array_equal(getattr(found, field.name), getattr(expected, field.name))
    assert ablation.change_samples(train_samples) == train_samples


@pytest.mark.parametrize("name", sorted(ABLATIONS))
def test_ablation_changes_one_modality(train_samples, name):
    ablation = ABLATIONS[name]
    sample = train_samples[0]
    found, expected = ablation.load(sample), load_clip(sample)
    changed = {
        "audio_muted": not np.array_equal(found.waveform, expected.waveform),
        "frames_blanked": not np.array_equal(found.frames, expected.frames),
        "text_shuffled": list(ablation.change_samples(train_samples)) != train_samples,
    }
    assert changed == {other: other == name for other in changed}
    assert ablation.changes_frames is changed["frames_blanked"]


def test_a_question_takes_its_choices_along_and_leaves_the_answer(train_samples):
    samples = [
        dataclasses.replace(sample, reference=f"Which? {i}", choices=(f"a{i}", f"b{i}"), answer=f"a{i}")
        for i, sample in enumerate(train_samples[:4])
    ]
    asked = shuffle_text(samples)
    assert [(each.reference[-1], each.choices[0], each.answer) for each in asked] == [
        ("2", "a2", "a0"),
        ("3", "a3", "a1"),
        ("0", "a0", "a2"),
        ("1", "a1", "a3"),
    ]
