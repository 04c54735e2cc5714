"""A model that hears and sees nothing: windows of its sound, and what becomes of the frames."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from aurora_rl.assembly.arguments import DataArguments, ModelArguments
from aurora_rl.assembly.encoder import assemble_encoder
from aurora_rl.data.containers import MediaError
from aurora_rl.data.media import load_clip
from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.evaluation.of_model import EvaluationArguments, evaluate_model
from aurora_rl.export.hub_folder import HubExport, export_for_hub
from aurora_rl.export.model_card import CardDetails
from aurora_rl.inference.pipeline import AuroraPipeline
from aurora_rl.models.clip_options import ClipOptions
from aurora_rl.models.encoding import EncodedSample, PromptOptions, SampleEncoder
from aurora_rl.models.grounding import shared_media
from aurora_rl.models.loading import LoadedModel
from aurora_rl.models.mllm import ClipSize
from aurora_rl.models.mllm.audioflamingo3 import AudioFlamingo3Family
from aurora_rl.models.mllm.contract import SECOND, TEXTS, ContractError, Subject
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from aurora_rl.tasks.multiple_choice import MultipleChoice
from tests.conversations import build_messages

WINDOW = 30 * SECOND


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject.of(AudioFlamingo3Family())


@pytest.fixture
def loaded(subject: Subject) -> LoadedModel:
    return LoadedModel(subject.model, subject.processor, subject.family)


@pytest.fixture
def encode(loaded: LoadedModel, data_args: DataArguments, train_samples: list[AVSample]) -> SampleEncoder:
    return assemble_encoder(data_args, loaded, train_samples, is_trainable=False)


def heard_windows(subject: Subject, inputs: dict[str, torch.Tensor], index: list[int]) -> list[int]:
    """Return how many windows each pass of the tower reads."""
    counts: list[int] = []
    hook = subject.model.model.audio_tower.register_forward_pre_hook(lambda _tower, args: counts.append(len(args[0])))
    with torch.no_grad(), shared_media(subject.model, index):
        subject.model(**inputs)
    hook.remove()
    return counts


# ---- a sound of several windows is one entry of a batch


def test_rows_share_sounds_of_several_windows_and_silence(subject: Subject) -> None:
    """Silence first, since counting windows as clips would give its row another's."""
    clips = [subject.encode(sound=sound, seed=i) for i, sound in enumerate((0, 31 * SECOND, SECOND, 62 * SECOND))]
    assert [clip.features["input_features"].size(1) for clip in clips] == [1, 2, 1, 3]
    index = [0, 1, 1, 2, 3, 3]
    found = subject.logits([clips[i] for i in index], clips, index)
    alone = subject.alone(clips)
    for row, i in zip(found, index, strict=True):
        assert_close(row, alone[i], rtol=0, atol=1e-4)
    assert (alone[1][-1] - alone[3][-1]).abs().max() > 5e-3  # control


def test_the_tower_reads_each_window_once_and_none_of_padding(subject: Subject) -> None:
    clips = [subject.encode(sound=sound, seed=i) for i, sound in enumerate((SECOND, 62 * SECOND))]
    index = [0, 0, 1, 1, 1]
    inputs = subject.batch([clips[i] for i in index], clips, index)
    assert inputs["input_features"].shape[:2] == (2, 3)
    assert heard_windows(subject, inputs, index) == [1 + 3]


def test_windows_as_entries_of_their_own_would_be_mistaken_for_clips() -> None:
    class OfWindows(AudioFlamingo3Family):
        def trim_features(self, features: dict[str, Any]) -> dict[str, Any]:
            return features

        def silence(self, processor: Any) -> dict[str, Any]:
            return {name: tensor[0] for name, tensor in super().silence(processor).items()}

    family, (model, processor) = OfWindows(), AudioFlamingo3Family().build_tiny(TEXTS)
    model.tower_inputs = lambda modality, inputs: inputs
    broken = Subject(family, model.eval(), processor)
    clips = [broken.encode(sound=sound) for sound in (31 * SECOND, 0)]
    with pytest.raises((ContractError, ValueError, RuntimeError, IndexError)):
        broken.logits(clips)


@pytest.mark.parametrize(
    ("samples", "windows", "tokens"), [(WINDOW, 1, 750), (WINDOW + 1, 2, 750), (WINDOW + 321, 2, 751)]
)
def test_the_last_window_may_hold_no_token(subject: Subject, samples: int, windows: int, tokens: int) -> None:
    clip = subject.encode(sound=samples)
    assert clip.features["input_features"].size(1) == windows
    assert clip.prompt_ids.count(subject.model.config.audio_token_id) == tokens
    rows = subject.logits([clip, subject.encode(sound=SECOND)])
    assert_close(rows[0], subject.alone([clip])[0], rtol=0, atol=1e-4)


def test_sounds_are_refused_that_give_no_token_or_would_be_cut(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    shortest = subject.family.shortest_sound(subject.processor)
    assert subject.encode(sound=shortest).prompt_ids.count(subject.model.config.audio_token_id) == 1
    with pytest.raises(ValueError, match=rf"{shortest - 1} samples, .* nothing below {shortest}"):
        subject.encode(sound=shortest - 1)
    assert subject.family.longest_sound(subject.processor) == 600 * SECOND
    monkeypatch.setattr(subject.processor, "max_audio_len", 30)
    subject.encode(sound=WINDOW)
    with pytest.raises(ValueError, match=r"lasts 30.0 s, but AudioFlamingo3Family hears no more than 30.0 s"):
        subject.encode(sound=WINDOW + 1)
    cut = subject.processor(text=["<sound>"], audio=[np.zeros(2 * WINDOW, np.float32)])
    assert len(cut["input_features"]) == 1  # control: transformers itself cuts it and goes on


def test_the_tower_called_on_its_own_is_that_of_transformers(subject: Subject) -> None:
    inputs = subject.model.tower_inputs("audio", dict(subject.encode(sound=31 * SECOND).features))
    with torch.no_grad():
        assert len(subject.model.get_audio_features(**inputs).pooler_output) == 775


def test_the_estimate_counts_tokens_and_windows(subject: Subject) -> None:
    clip = subject.encode(sound=31 * SECOND)
    estimate = subject.family.clip_pass(subject.model.config, ClipSize(frames=4, size=(720, 1280), seconds=31))
    assert estimate.prompt_tokens == clip.prompt_ids.count(subject.model.config.audio_token_id)
    (tower,) = estimate.towers.values()
    seen: list[torch.Tensor] = []
    layer = subject.model.model.audio_tower.layers[0]
    hook = layer.register_forward_pre_hook(lambda _layer, args: seen.append(args[0]))
    subject.logits([clip])
    hook.remove()
    assert tower.tokens * tower.width == seen[0].numel()


# ---- the frames are the head's alone


def test_words_depend_on_the_sound_and_masks_on_both(
    subject: Subject, encode: SampleEncoder, train_samples: list[AVSample]
) -> None:
    """The state at `[SEG]` hears, and the mask decoder sees."""

    def answer(frames_of: AVSample, sound_of: AVSample) -> tuple[torch.Tensor, torch.Tensor]:
        heard, seen = load_clip(sound_of), load_clip(frames_of)
        encode.load = lambda sample: dataclasses.replace(heard, frames=seen.frames)
        row = encode(sound_of)
        assert row.frame_inputs is not None
        ids = torch.tensor([[*row.prompt.prompt_ids, subject.seg_id]])
        head = {"seg_frames": row.frame_inputs, "seg_frame_counts": torch.tensor([len(row.frame_inputs)])}
        with torch.no_grad():
            outputs = subject.model(
                input_ids=ids,
                **subject.family.collate_features([row.prompt.features]),
                **head,
                seg_clip_index=torch.tensor([0]),
                seg_index=torch.tensor([ids.size(1) - 1]),
            )
        return outputs.logits[0, -1], outputs.mask_logits

    first, other = train_samples[0], next(s for s in train_samples if s.media_id != train_samples[0].media_id)
    other = dataclasses.replace(other, reference=first.reference)
    words, masks = answer(first, first)
    words_of_frames, masks_of_frames = answer(other, first)
    words_of_sound, masks_of_sound = answer(first, other)
    assert torch.equal(words, words_of_frames) and not torch.allclose(masks, masks_of_frames, atol=1e-4)
    assert not torch.allclose(words, words_of_sound, atol=1e-4)
    assert not torch.allclose(masks, masks_of_sound, atol=1e-6)


def test_a_prompt_has_the_sound_as_its_only_medium(encode: SampleEncoder, train_samples: list[AVSample]) -> None:
    def media(row: EncodedSample) -> tuple[list[int], list[str], list[str]]:
        kinds = [part["type"] for message in row.prompt.engine.messages for part in message["content"]]
        return row.prompt.prompt_ids, kinds, list(row.prompt.engine.media)

    row = media(encode(train_samples[0]))
    assert row[1:] == (["audio", "text"], ["audio"])
    between = dataclasses.replace(train_samples[0], use_audio_in_video=True)
    assert media(encode(between)) == row  # there are no frames that it could lie between
    silent = dataclasses.replace(train_samples[0], audio_path=None)
    assert media(encode(silent))[1:] == (["text"], [])
    assert encode.family.media_limits == {"audio": 1}


def test_a_silent_row_trains_beside_others(encode: SampleEncoder, train_samples: list[AVSample]) -> None:
    rows = [encode(train_samples[0]), encode(dataclasses.replace(train_samples[0], audio_path=None))]
    batch = encode.family.collate_features([row.prompt.features for row in rows])
    assert batch["input_features_mask"].any(-1).tolist() == [[True], [False]]


def test_sound_alone_is_a_whole_clip(
    subject: Subject, loaded: LoadedModel, data_args: DataArguments, train_samples: list[AVSample]
) -> None:
    data_args = dataclasses.replace(data_args, task="aurora_rl.tasks.multiple_choice:MultipleChoice", chains=None)
    question = {"choices": ("drum", "bell"), "answer": "bell", "mask_paths": ()}
    both = dataclasses.replace(train_samples[0], **question)
    heard = dataclasses.replace(both, frame_paths=())
    encode = assemble_encoder(data_args, loaded, [heard], is_trainable=False)
    assert isinstance(encode.task, MultipleChoice)
    assert encode(heard).prompt.prompt_ids == encode(both).prompt.prompt_ids
    for name, tensor in encode(heard).prompt.features.items():
        assert torch.equal(tensor, encode(both).prompt.features[name])


def test_sound_alone_is_never_between_frames() -> None:
    """The same row for a model that sees: a benchmark's key is for all rows, and this one has no frames."""
    model, processor = Qwen2_5OmniFamily().build_tiny(TEXTS)
    encode = SampleEncoder(Qwen2_5OmniFamily(), processor, None, task=MultipleChoice())
    sound = np.zeros(SECOND, np.float32)
    found = []
    for between in (False, True):
        sample = AVSample(
            "a", 0, "train", "a", "", "Which?", 1.0, (), "a.wav", use_audio_in_video=between, choices=("x",)
        )
        encode.load = lambda _: AVClip(np.zeros((0, 1, 1, 3), np.uint8), sound, None)
        found.append(encode(sample).prompt.prompt_ids)
    assert found[0] == found[1] and model.config.audio_token_id in found[0]


# ---- what makes no sense is refused


def test_its_sound_cannot_be_dropped(
    loaded: LoadedModel, data_args: DataArguments, train_samples: list[AVSample]
) -> None:
    deaf = dataclasses.replace(data_args, drop_sound=True)
    with pytest.raises(MediaError, match=r"drop_sound is true, but AudioFlamingo3Family only hears"):
        assemble_encoder(deaf, loaded, train_samples, is_trainable=False)


def test_text_that_names_the_sound_is_refused(subject: Subject) -> None:
    with pytest.raises(ValueError, match="<sound>"):
        subject.encode("the <sound> drum", sound=0)
    messages = build_messages("the <sound> drum", frames=None)
    with pytest.raises(ValueError, match="<sound>"):
        subject.family.encode(subject.processor, messages, waveform=None, fps=1.0)


@pytest.mark.parametrize(("instruction", "is_told"), [(None, True), ("Listen: what you hear? {reference}", False)])
def test_an_instruction_to_look_is_told_of(
    loaded: LoadedModel, data_args: DataArguments, caplog: pytest.LogCaptureFixture, instruction: str, is_told: bool
) -> None:
    asked = dataclasses.replace(data_args, instruction=instruction)
    assemble_encoder(asked, loaded, [], is_trainable=False)
    assert ("asks for a step 'Look:', but the model is given no frames" in caplog.text) is is_told
    assert "'Listen:'" not in caplog.text


# ---- on the way of a run


@pytest.fixture(scope="module")
def checkpoint(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("ears")
    subject.model.save_pretrained(folder)
    subject.processor.save_pretrained(folder)
    return str(folder)


def test_an_ablation_is_refused_that_would_change_nothing(
    checkpoint: str, data_args: DataArguments, tmp_path: Path
) -> None:
    words = dataclasses.replace(data_args, benchmark="questions", chains=None)
    words = dataclasses.replace(words, task="aurora_rl.tasks.multiple_choice:MultipleChoice")
    args = EvaluationArguments(str(tmp_path / "words"), ["test_s"], use_cpu=True, max_completion_length=2)
    with pytest.raises(ValueError, match="frames_blanked would repeat the run, as the model sees nothing"):
        evaluate_model(ModelArguments(checkpoint), words, dataclasses.replace(args, ablations=["frames_blanked"]))
    of_masks = EvaluationArguments(str(tmp_path / "masks"), ["test_s"], ablations=["audio_muted", "frames_blanked"])
    of_masks = dataclasses.replace(of_masks, use_cpu=True, max_completion_length=2)
    evaluate_model(ModelArguments(checkpoint), data_args, of_masks)  # masks are found in the frames
    assert json.loads((tmp_path / "masks" / "scores.frames_blanked.json").read_text())["overall"]["n"] == 3


def test_a_video_is_answered_with_masks(checkpoint: str, train_samples: list[AVSample]) -> None:
    sample = train_samples[0]
    options = ClipOptions(PromptOptions(), fps=sample.fps, num_frames=sample.num_frames, use_audio_in_video=True)
    pipeline = AuroraPipeline(checkpoint, clip_options=options, max_completion_length=4)
    answer = pipeline(video=list(sample.frame_paths), audio=sample.audio_path, text=sample.reference)
    masks = answer.references[0].masks
    assert masks is not None and masks.shape[0] == sample.num_frames


def test_the_model_card_says_what_it_does_not_see(checkpoint: str, tmp_path: Path) -> None:
    card = (export_for_hub(checkpoint, tmp_path / "hub", HubExport(), CardDetails("mine")) / "README.md").read_text()
    assert "Given a video that it hears without seeing it and a sentence" in card and "It sees nothing" in card
    assert "It hears nothing" not in card
