"""A reference's own files come after the clip's; heads, ablations and other rows know the clip alone."""

import dataclasses
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from aurora_rl.data.containers import SAMPLING_RATE, MediaError
from aurora_rl.data.media import load_clip
from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.models.collate import distinct_media, with_shared_media
from aurora_rl.models.encoding import PromptOptions, SampleEncoder
from aurora_rl.models.loading import LoadedModel
from aurora_rl.models.mllm import load_family
from aurora_rl.models.other_media import HEARING, exchange
from aurora_rl.models.reference_media import check_reference_media, sentence_about_media, with_reference_media
from tests.models.test_grounding import sft_batch

VIDEO = load_family("qwen2_5_omni")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Half a second of a tone, the same twice as long, and a wide red picture."""
    tone = 0.5 * np.sin(np.arange(SAMPLING_RATE) * 0.1)
    soundfile.write(tmp_path / "said.wav", tone[: SAMPLING_RATE // 2], SAMPLING_RATE)
    soundfile.write(tmp_path / "like.wav", tone, SAMPLING_RATE)
    Image.fromarray(np.full((10, 40, 3), (255, 0, 0), np.uint8)).save(tmp_path / "look.png")
    return {path.stem: str(path) for path in tmp_path.iterdir()}


@pytest.fixture
def clip(train_samples: list[AVSample]) -> AVClip:
    return load_clip(train_samples[0])


def refers_by(sample: AVSample, *paths: str) -> AVSample:
    return dataclasses.replace(sample, reference_media=paths)


def test_recordings_are_heard_after_a_second_of_silence_each(
    train_samples: list[AVSample], clip: AVClip, files: dict[str, str]
) -> None:
    shown = with_reference_media(VIDEO, refers_by(train_samples[0], files["said"], files["like"]), clip)
    assert clip.waveform is not None and shown.waveform is not None and shown.frames is not clip.frames
    own, rest = np.split(shown.waveform, [len(clip.waveform)])
    assert np.array_equal(own, clip.waveform) and shown.waveform.dtype == np.float32
    assert len(rest) == 3.5 * SAMPLING_RATE and np.array_equal(shown.frames, clip.frames)
    heard = np.abs(rest.reshape(7, -1)).max(axis=1) > 0.4  # half seconds
    assert heard.tolist() == [False, False, True, False, False, True, True]
    mute = dataclasses.replace(clip, waveform=None)
    muted = with_reference_media(VIDEO, refers_by(train_samples[0], files["said"], files["like"]), mute)
    assert np.array_equal(muted.waveform, rest), "a muted clip leaves the recordings"


@pytest.mark.parametrize(
    ("sees", "num_frames", "expected"),
    [("video", 4, [4]), ("video", 3, [2, 4]), ("video", 1, [0, 2]), ("image", 3, [3])],
)
def test_a_picture_is_joined_to_no_frame_of_the_clip(
    train_samples: list[AVSample], clip: AVClip, files: dict[str, str], sees: str, num_frames: int, expected: list[int]
) -> None:
    """A vision tower of videos joins frames two by two; an odd number is made even by the last one."""
    short = dataclasses.replace(clip, frames=clip.frames[:num_frames])
    family = SimpleNamespace(sees=sees)
    shown = with_reference_media(family, refers_by(train_samples[0], files["look"]), short).frames  # type: ignore[arg-type]
    *copies, place = expected
    assert len(shown) == place + 1 and np.array_equal(shown[:num_frames], short.frames)
    assert all(np.array_equal(shown[copy + 1], shown[copy]) for copy in copies)
    height, width = clip.frames.shape[1:3]
    middle, edge = shown[-1][height // 2], shown[-1][0]
    assert (middle == (255, 0, 0)).all() and not edge.any(), "all of the picture, with black margins"


def test_a_sound_alone_gets_the_picture_in_its_own_size(train_samples: list[AVSample], files: dict[str, str]) -> None:
    nothing = AVClip(frames=np.zeros((0, 0, 0, 3), np.uint8), waveform=None, gt_masks=None)
    shown = with_reference_media(VIDEO, refers_by(train_samples[0], files["look"]), nothing)
    assert shown.frames.shape == (1, 10, 40, 3)


def test_a_prompt_has_them_and_says_so_and_the_head_has_the_clip_alone(
    encode: SampleEncoder, train_samples: list[AVSample], files: dict[str, str]
) -> None:
    sample = dataclasses.replace(train_samples[0], use_audio_in_video=False)
    plain, spoken = encode(sample), encode(refers_by(sample, files["said"], files["look"]))
    assert plain.frame_inputs is not None and spoken.frame_inputs is not None
    assert torch.equal(spoken.frame_inputs, plain.frame_inputs) and spoken.frame_size == plain.frame_size
    assert torch.equal(spoken.gt_masks, plain.gt_masks)
    for medium in ("audio", "video"):
        token_id = encode.tokenizer.convert_tokens_to_ids(getattr(encode.processor, f"{medium}_token"))
        assert spoken.prompt.prompt_ids.count(token_id) > plain.prompt.prompt_ids.count(token_id), medium
    assert len(spoken.prompt.engine.media["audio"]) == 1 and len(spoken.prompt.engine.media["video"]) == 1
    question = encode.text_prompt(spoken.sample)[0]["content"][0]["text"]
    assert question.startswith("The last picture is none of the clip") and sample.reference in question
    assert "What is heard last" in question and "heard last" not in encode.text_prompt(sample)[0]["content"][0]["text"]
    encode.check([spoken.sample])  # the sentence is the prompt's own, and holds no control token


def test_a_recording_is_not_put_between_the_frames(
    encode: SampleEncoder, train_samples: list[AVSample], files: dict[str, str]
) -> None:
    inside = dataclasses.replace(train_samples[0], use_audio_in_video=True)
    apart = dataclasses.replace(inside, use_audio_in_video=False)
    assert encode(inside).prompt.prompt_ids != encode(apart).prompt.prompt_ids
    spoken = [encode(refers_by(sample, files["said"])).prompt.prompt_ids for sample in (inside, apart)]
    assert spoken[0] == spoken[1]


def test_rows_share_a_clip_only_with_the_same_files(
    encode: SampleEncoder, train_samples: list[AVSample], clip: AVClip, files: dict[str, str]
) -> None:
    sample = train_samples[0]
    rows = [refers_by(sample, *paths) for paths in ((files["said"],), (), (files["said"],), ())]
    for encoded in (encode.encode_references(rows, clip), with_shared_media([encode(row) for row in rows])):
        assert distinct_media(encoded)[1] == [0, 1, 0, 1]


def test_the_model_reads_by_what_was_said(
    loaded: LoadedModel, encode: SampleEncoder, train_samples: list[AVSample], files: dict[str, str]
) -> None:
    """In one batch with a row in words, which stays as it is alone; the same reference, and the same target."""
    sample = dataclasses.replace(train_samples[0], use_audio_in_video=False)

    def scores(*rows: AVSample) -> list[tuple[torch.Tensor, torch.Tensor]]:
        batch = sft_batch(loaded, encode, list(rows))
        with torch.no_grad():
            output = loaded.model(**batch)
        masks = output.mask_logits.unflatten(0, (len(rows), -1))
        return [(output.logits[row, batch["seg_index"][row]], masks[row]) for row in range(len(rows))]

    words, said, other = scores(sample, refers_by(sample, files["said"]), refers_by(sample, files["like"]))
    for mine, alone in zip(words, scores(sample)[0], strict=True):
        torch.testing.assert_close(mine, alone, rtol=1e-4, atol=1e-4)
    for mine, others in zip(said, other, strict=True):
        assert mine.shape == others.shape and not torch.allclose(mine, others, atol=1e-3)


def test_with_another_clips_sound_the_recording_stays(
    encode: SampleEncoder, train_samples: list[AVSample], files: dict[str, str]
) -> None:
    """No tower has heard the other clip's sound with this recording behind it."""
    here, there = (dataclasses.replace(sample, use_audio_in_video=False) for sample in train_samples[:4:2])
    for paths, lends_sound in ((files["said"],), False), ((), True):
        rows = [encode(refers_by(here, *paths)), encode(there)]
        found = exchange(encode, rows, HEARING, random.Random(0))[0]
        assert found is not None and found.other is rows[1]
        assert ("audio" in found.lenders) == lends_sound and found.lenders["video"] is rows[0]
        audio = load_clip(there).waveform
        (heard, _rate), *_ = found.row.prompt.engine.media["audio"]
        assert np.array_equal(heard[: len(audio)], audio) and (len(heard) > len(audio)) == bool(paths)


@pytest.mark.parametrize(
    ("family", "file", "options", "why"),
    [
        ("qwen3_vl", "said", {}, "recording said.wav, which .* it has no ears"),
        ("audioflamingo3", "look", {}, "picture look.png, which .* it sees nothing"),
        ("qwen2_5_omni", "said", {"drop_sound": True}, "drop_sound is true"),
    ],
)
def test_what_a_model_cannot_be_given_is_told(
    train_samples: list[AVSample], files: dict[str, str], family: str, file: str, options: dict, why: str
) -> None:
    with pytest.raises(MediaError, match=why):
        check_reference_media(load_family(family), refers_by(train_samples[0], files[file]), **options)
    check_reference_media(load_family(family), train_samples[0], **options)


def test_dropped_sound_is_told_before_the_first_clip_is_read(
    encode: SampleEncoder, train_samples: list[AVSample]
) -> None:
    encode.options = PromptOptions(drop_sound=True)
    with pytest.raises(MediaError, match=r"gone\.wav, .* drop_sound"):
        encode.check([refers_by(train_samples[0], "gone.wav")])


def test_words_alone_add_no_sentence(train_samples: list[AVSample]) -> None:
    assert sentence_about_media(train_samples[0]) == ""
    assert "2 recordings" in sentence_about_media(refers_by(train_samples[0], "a.wav", "b.mp3"))
