"""A clip and references in, answers out: those of evaluation, whatever the clip comes in and however long it is."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from peft import get_peft_model

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.encoder import assemble_encoder, read_clip_options
from aurora_rl.assembly.model import peft_config
from aurora_rl.data.containers import MediaError
from aurora_rl.data.footage import Picture, open_footage
from aurora_rl.data.media import load_clip
from aurora_rl.inference import pipeline as pipeline_module
from aurora_rl.inference.pipeline import AuroraPipeline, ReferenceAnswer, WindowAnswer, cut_windows
from aurora_rl.inference.predictor import Predictor
from aurora_rl.inference.propagation import MemoryMasks
from aurora_rl.models.clip_options import ClipOptions
from aurora_rl.models.loading import load_model
from aurora_rl.tasks.multiple_choice import MultipleChoice

NUM_TOKENS = 12


@pytest.fixture
def pipeline(loaded, encode) -> AuroraPipeline:
    """Of a random model; `encode` has told it how clips are put to it: 4 frames, 2 a second."""
    return AuroraPipeline(loaded, max_completion_length=NUM_TOKENS)


@pytest.fixture
def long_film(film, train_samples):
    """Five seconds, ten sampled frames: the frames of a clip of the benchmark, and its sound, over and over."""
    clip = load_clip(train_samples[0])
    return film(
        [frame for frame, _ in itertools.product(itertools.islice(itertools.cycle(clip.frames), 10), range(2))],
        waveform=np.tile(clip.waveform, 3)[: 5 * 16_000],
    )


def own_media(sample) -> dict:
    return {"video": list(sample.frame_paths), "audio": sample.audio_path, "text": sample.reference}


def assert_same(found: ReferenceAnswer, expected: ReferenceAnswer) -> None:
    assert [window.text for window in found.windows] == [window.text for window in expected.windows]
    np.testing.assert_allclose(found.mask_probs, expected.mask_probs, rtol=1e-3, atol=1e-4)


# The same as evaluation


def test_answer_is_that_of_evaluation(pipeline, loaded, encode, train_samples):
    predictor = Predictor(loaded.model, encode, loaded.seg_token_id, max_completion_length=NUM_TOKENS, append_seg=True)
    for sample, (_, [expected]) in zip(train_samples[:3], predictor.predict(train_samples[:3]), strict=True):
        answer = pipeline(**own_media(sample))
        [reference] = answer.references
        assert reference.reference == sample.reference
        [window] = reference.windows
        assert (window.start, window.end, window.text) == (0.0, 2.0, expected.text)
        assert window.has_seg == ("[SEG]" in expected.text)
        assert answer.frame_times == (0.0, 0.5, 1.0, 1.5)
        np.testing.assert_allclose(reference.mask_probs, expected.mask_probs.numpy(), rtol=1e-3, atol=1e-4)
        assert reference.masks.dtype == bool and reference.masks.shape == (4, 64, 64)
        assert np.array_equal(reference.masks, reference.mask_probs > 0.5)


def test_only_the_last_position_of_a_prompt_is_projected(pipeline, train_samples, projected):
    pipeline(**own_media(train_samples[0]) | {"text": ["the drum", "the bell on the left"]})
    assert projected and set(projected) == {1}


def test_frames_as_files_pictures_and_arrays_are_answered_alike(pipeline, train_samples):
    sample = train_samples[0]
    clip = load_clip(sample)
    [from_files] = pipeline(**own_media(sample)).references
    [from_arrays] = pipeline(video=list(clip.frames), audio=clip.waveform, text=sample.reference).references
    assert_same(from_arrays, from_files)


def test_a_video_file_is_answered_as_its_frames_and_sound(pipeline, film, train_samples):
    clip = load_clip(train_samples[0])
    path = film([frame for frame in clip.frames for _ in range(2)], waveform=clip.waveform)  # 4 a second
    footage = open_footage(path)
    [from_file] = pipeline(video=path, text="The drum.").references
    frames = [picture.pixels for picture in footage.sampled(2.0)]
    assert len(frames) == 4
    [from_frames] = pipeline(video=frames, audio=footage.waveform, text="The drum.").references
    assert_same(from_file, from_frames)


# Several references


def test_several_references_are_answered_as_each_alone(pipeline, train_samples):
    texts = ["The drum.", "The object making a sound.", "The dog on the left of the bird."]
    media = own_media(train_samples[0]) | {"text": texts}
    together = pipeline(**media)
    assert [each.reference for each in together.references] == texts
    for text, found in zip(texts, together.references, strict=True):
        [alone] = pipeline(**media | {"text": text}).references
        assert_same(found, alone)
    pipeline.predictor.batch_size = 2
    for found, other in zip(pipeline(**media).references, together.references, strict=True):
        assert_same(found, other)


def test_several_references_share_the_encoders(pipeline, loaded, train_samples):
    read: dict[str, list[int]] = {"frames": [], "sound": [], "images": []}

    def count(name: str, module: torch.nn.Module) -> None:
        def note(_module, args, kwargs):
            read[name].append(next(value.numel() for value in (*args, *kwargs.values()) if torch.is_tensor(value)))

        module.register_forward_pre_hook(note, with_kwargs=True)

    count("frames", loaded.model.visual)
    count("sound", loaded.model.audio_tower)
    frame_inputs = pipeline.predictor.encode.frame_inputs
    pipeline.predictor.encode.frame_inputs = lambda *args: read["images"].append(1) or frame_inputs(*args)
    pipeline(**own_media(train_samples[0]))
    alone = {name: list(numbers) for name, numbers in read.items()}
    assert [len(numbers) for numbers in alone.values()] == [2, 2, 1]  # to reason and for the masks; once for both
    for numbers in read.values():
        numbers.clear()
    pipeline(**own_media(train_samples[0]) | {"text": ["The drum.", "The dog.", "The bell."]})
    assert read == alone


@pytest.mark.parametrize("text", [[], "", ["The drum.", " "]])
def test_no_reference_is_an_error(pipeline, train_samples, text):
    with pytest.raises(ValueError, match="give at least one, none of them empty"):
        pipeline(**own_media(train_samples[0]) | {"text": text})


# Longer clips


def pictures(count: int) -> list[Picture]:
    return [Picture(float(index), np.full((1, 1, 3), index, np.uint8)) for index in range(count)]


def spans(count: int, length: int, stride: int) -> list[tuple[int, int, bool]]:
    """First picture, number of pictures and whether it is the last, of each window."""
    windows = list(cut_windows(iter(pictures(count)), length, stride))
    for window in windows:
        assert [picture.time for picture in window.pictures] == list(
            range(window.first, window.first + len(window.pictures))
        )
    return [(window.first, len(window.pictures), window.is_last) for window in windows]


def test_windows_follow_each_other_and_the_last_ends_with_the_clip():
    assert spans(3, 4, 4) == [(0, 3, True)]
    assert spans(4, 4, 4) == [(0, 4, True)]
    assert spans(8, 4, 4) == [(0, 4, False), (4, 4, True)]
    assert spans(10, 4, 4) == [(0, 4, False), (4, 4, False), (6, 4, True)]
    assert spans(7, 4, 2) == [(0, 4, False), (2, 4, False), (3, 4, True)]
    assert spans(6, 4, 2) == [(0, 4, False), (2, 4, True)]
    assert spans(3, 1, 1) == [(0, 1, False), (1, 1, False), (2, 1, True)]
    assert spans(0, 4, 4) == []


def test_no_more_than_two_windows_of_pictures_are_read_ahead():
    source = iter(pictures(100))
    windows = cut_windows(source, 4, 4)
    next(windows)
    assert next(source).time == 5.0


def test_a_long_clip_is_answered_window_by_window(pipeline, long_film):
    answer = pipeline(video=long_film, text=["The drum.", "The dog."])
    assert len(answer.frame_times) == 10
    for reference in answer.references:
        assert [(window.start, window.end) for window in reference.windows] == [(0, 2), (2, 4), (3, 5)]
        assert reference.mask_probs.shape == (10, 64, 64)


def test_each_window_is_answered_as_a_clip_of_its_own_and_overlaps_are_averaged(pipeline, long_film):
    footage = open_footage(long_film)
    frames = [picture.pixels for picture in footage.sampled(2.0)]
    [whole] = pipeline(video=long_film, text="The drum.").references
    alone = []
    for first, last in ((0, 4), (4, 8), (6, 10)):
        sound = footage.waveform[8000 * first :] if last == 10 else footage.waveform[8000 * first : 8000 * last]
        alone.append(pipeline(video=frames[first:last], audio=sound, text="The drum.").references[0])
    assert [window.text for window in whole.windows] == [each.windows[0].text for each in alone]
    first, second, third = (each.mask_probs for each in alone)
    expected = np.concatenate([first, second[:2], (second[2:] + third[:2]) / 2, third[2:]])
    np.testing.assert_allclose(whole.mask_probs, expected, rtol=1e-3, atol=1e-4)


def test_windows_may_be_asked_for(pipeline, long_film):
    answer = pipeline(video=long_film, text="The drum.", window_seconds=1.5, stride_seconds=1.0)
    assert [window.start for window in answer.references[0].windows] == [0.0, 1.0, 2.0, 3.0, 3.5]
    [whole] = pipeline(video=long_film, text="The drum.", window_seconds=60).references[0].windows
    assert (whole.start, whole.end) == (0.0, 5.0)


def test_windows_that_leave_frames_out_are_refused(pipeline, long_film):
    with pytest.raises(ValueError, match="windows of 1 s every 2 s leave frames out: give a stride of at most 1 s"):
        pipeline(video=long_film, text="The drum.", window_seconds=1, stride_seconds=2)


def test_an_answer_too_large_for_memory_is_refused(pipeline, long_film, monkeypatch):
    monkeypatch.setattr(pipeline_module, "MAX_ANSWER_PIXELS", 9 * 64 * 64)
    with pytest.raises(MediaError, match=r"the masks of clip\.mp4 have more than .*lower max_side"):
        pipeline(video=long_film, text="The drum.")


def test_where_the_sound_has_ended_there_is_silence(pipeline, film):
    frames = [np.full((64, 64, 3), 10 * i, np.uint8) for i in range(16)]  # 4 s
    path = film(frames, waveform=np.random.default_rng(0).uniform(-0.5, 0.5, 16_000))
    waveform = open_footage(path).waveform
    padded = np.pad(waveform, (0, 4 * 16_000 - len(waveform)))
    [short] = pipeline(video=path, text="The drum.").references
    [whole] = pipeline(video=path, audio=padded, text="The drum.").references
    assert len(short.windows) == 2
    assert_same(short, whole)


# What is special about a clip


def test_a_clip_without_sound_is_answered_by_its_pictures_and_says_so(pipeline, film, loaded, caplog):
    answer = pipeline(video=film([np.full((64, 64, 3), 90, np.uint8)] * 8), text=["The drum.", "The dog."])
    assert answer.notes == ("there is no sound: answered by the pictures alone",)
    assert answer.footage.waveform is None
    assert "there is no sound" in caplog.text
    assert len(answer.references) == 2


def test_a_still_image_is_a_clip_of_one_frame(pipeline):
    answer = pipeline(video=[np.full((64, 64, 3), 90, np.uint8)], text="The drum.")
    assert answer.frame_times == (0.0,)
    assert answer.references[0].mask_probs.shape == (1, 64, 64)


def test_interleaved_sound_is_left_out_where_there_is_none(loaded, encode):
    options = dataclasses.replace(loaded.clip_options, use_audio_in_video=True)
    pipeline = AuroraPipeline(loaded, clip_options=options, max_completion_length=4)
    frames = [np.full((64, 64, 3), 90, np.uint8)] * 4
    assert pipeline(video=frames, text="The drum.").references
    assert pipeline(video=frames, audio=np.zeros(32_000, np.float32), text="The drum.").references


def test_masks_come_at_the_size_that_frames_are_brought_down_to(loaded, encode):
    pipeline = AuroraPipeline(loaded, max_completion_length=4, max_side=64)
    answer = pipeline(video=[np.full((90, 160, 3), 90, np.uint8)] * 4, text="The drum.")
    assert answer.footage.own_size == (90, 160)
    assert answer.references[0].masks.shape == (4, 36, 64)


def test_every_part_is_timed(pipeline, train_samples):
    seconds = pipeline(**own_media(train_samples[0])).seconds
    assert list(seconds) == ["read", "encode", "reason", "masks"]
    assert all(value > 0 for value in seconds.values())


# What is said


def make_reference(*categories: str | None) -> ReferenceAnswer:
    windows = tuple(WindowAnswer(0.0, 1.0, "", {}, category, True) for category in categories)
    return ReferenceAnswer("", windows, np.zeros((1, 1, 1), np.float32))


def test_category_is_that_of_most_windows_that_see_the_target():
    assert make_reference("drum").category == "drum"
    assert make_reference("null", "null", "drum").category == "drum"
    assert make_reference("dog", "drum", "drum", None).category == "drum"
    assert make_reference("null", None).is_null
    assert not make_reference("null", "drum").is_null
    assert make_reference(None).category is None
    assert not make_reference(None).is_null


def test_chain_of_thought_comes_in_steps(pipeline):
    text = "Look: I see a drum.\nListen: I hear a drum.\nRead: the drum.\nAnswer: the target is the drum. It is [SEG]."
    frames = tuple(pictures(4))
    answer = pipeline._window_answer(pipeline_module.Window(2, frames, True), text)
    assert (answer.start, answer.end) == (1.0, 3.0)
    assert dict(answer.steps) == {
        "look": "I see a drum.",
        "listen": "I hear a drum.",
        "read": "the drum.",
        "answer": "the target is the drum. It is [SEG].",
    }
    assert (answer.category, answer.has_seg, answer.is_null) == ("drum", True, False)
    nothing = pipeline._window_answer(pipeline_module.Window(0, frames, True), "Answer: there is no such target.")
    assert (nothing.category, nothing.has_seg, nothing.is_null) == ("null", False, True)


# How clips are put to a model


def test_a_saved_model_knows_how_clips_are_put_to_it(loaded, encode, train_samples, tmp_path):
    loaded.model.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    again = AuroraPipeline(str(tmp_path), max_completion_length=NUM_TOKENS, device="cpu")
    assert again.options == ClipOptions(prompt=encode.options, fps=2.0, num_frames=4)
    here = AuroraPipeline(loaded, max_completion_length=NUM_TOKENS)
    media = own_media(train_samples[0])
    assert_same(again(**media).references[0], here(**media).references[0])


def test_a_saved_adapter_knows_it_and_before_what_lies_beneath(loaded, encode, data_args, train_samples, tmp_path):
    loaded.model.save_pretrained(tmp_path / "base")
    loaded.processor.save_pretrained(tmp_path / "base")
    base = load_model(str(tmp_path / "base"))
    data_args.instruction = "Find {reference}"
    assemble_encoder(data_args, base, train_samples)
    adapter = get_peft_model(base.model, peft_config(ModelArguments(model="", use_peft=True), base))
    adapter.save_pretrained(tmp_path / "adapter")
    again = load_model(str(tmp_path / "adapter"), is_trainable=False)
    assert again.clip_options.prompt.instruction == "Find {reference}"
    data_args.instruction = "Show {reference}"
    assemble_encoder(data_args, again, train_samples)  # trained on
    again.model.save_pretrained(tmp_path / "further")
    assert load_model(str(tmp_path / "further")).clip_options.prompt.instruction == "Show {reference}"


def test_a_model_that_does_not_tell_is_refused_unless_it_is_told(loaded, tmp_path):
    with pytest.raises(ValueError, match="the checkpoint does not say how clips are given to the model"):
        AuroraPipeline(loaded)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: x\ndata_root: y\nfps: 2.0\nnum_frames: 4\ninstruction: 'Find {reference}'\nseed: 3\n")
    options = read_clip_options(recipe)
    assert (options.fps, options.num_frames, options.prompt.instruction) == (2.0, 4, "Find {reference}")
    assert AuroraPipeline(loaded, clip_options=options).options == options


def test_options_of_a_training_set_are_its_longest_clip_and_its_usual_rate(train_samples):
    shorter = dataclasses.replace(train_samples[0], frame_paths=train_samples[0].frame_paths[:2], fps=1.0)
    options = ClipOptions.of_samples([shorter, *train_samples], ClipOptions().prompt)
    assert (options.fps, options.num_frames, options.use_audio_in_video) == (2.0, 4, False)
    assert ClipOptions.from_dict(options.to_dict()) == options


# Every frame


def test_every_frame_has_the_masks_of_the_nearest_sampled_frame(pipeline, long_film):
    answer = pipeline(video=long_film, text=["The drum.", "The dog."])
    shown = list(pipeline.every_frame(answer))
    assert [round(each.picture.time, 2) for each in shown] == [index / 4 for index in range(20)]
    for each in shown:
        sampled = min(each.index // 2, 9)  # between two sampled frames the earlier is as near
        for number, reference in enumerate(answer.references):
            assert np.array_equal(each.masks[number], reference.masks[sampled])


def test_sam2_head_tracks_from_the_masks_of_the_sampled_frames(omni_checkpoint, sam2_checkpoint, long_film):
    segmenter = {"type": "sam2", "image_size": 64, "checkpoint": sam2_checkpoint}
    options = ClipOptions(fps=2.0, num_frames=4)
    pipeline = AuroraPipeline(
        load_model(omni_checkpoint, segmenter=segmenter), clip_options=options, max_completion_length=4
    )
    answer = pipeline(video=long_film, text="The drum.")
    [reference] = answer.references
    assert reference.mask_probs.shape == (10, 64, 64)
    assert reference.masks.any()
    tracked = list(pipeline.every_frame(answer))
    assert isinstance(pipeline._memory, MemoryMasks)
    assert len(tracked) == 20
    for each in tracked[::2]:
        assert np.array_equal(each.masks[0], reference.masks[each.index // 2])
    nearest = list(pipeline.every_frame(answer, track=False))
    assert any(not np.array_equal(a.masks, b.masks) for a, b in zip(tracked[1::2], nearest[1::2], strict=True))
    assert torch.is_grad_enabled()


def test_the_pipeline_is_the_public_name_of_its_room():
    import aurora_rl.inference

    assert aurora_rl.inference.AuroraPipeline is AuroraPipeline
    with pytest.raises(AttributeError, match="no attribute 'AuroraPipelin'"):
        aurora_rl.inference.AuroraPipelin  # noqa: B018


# Tasks of words


def test_a_question_with_choices_is_answered_in_words(loaded, encode, train_samples):
    with pytest.raises(ValueError, match="has 0 choices"):
        AuroraPipeline(loaded, task=MultipleChoice())(**own_media(train_samples[0]))
    pipeline = AuroraPipeline(loaded, task="aurora_rl.tasks.multiple_choice:MultipleChoice", max_completion_length=4)
    assert pipeline.predictor.encode.options.instruction is None  # the task's own, not that of training
    answer = pipeline(**own_media(train_samples[0]) | {"text": "Which sounds?"}, choices=["dog", "drum"])
    [said] = answer.references
    assert (said.mask_probs, said.masks) == (None, None)
    assert said.text == said.windows[0].text and said.value == pipeline.task.parse(said.text).value
    assert answer.frame_times == (0.0, 0.5, 1.0, 1.5)
    with pytest.raises(ValueError, match="MultipleChoice gives no masks"):
        next(iter(pipeline.every_frame(answer)))


def test_the_task_of_a_model_is_asked_for_by_its_class(loaded, encode):
    options = dataclasses.replace(loaded.clip_options, task="MultipleChoice")
    with pytest.raises(ValueError, match="trained on the task 'MultipleChoice', but ReferenceSegmentation would be"):
        AuroraPipeline(loaded, clip_options=options)


def test_a_model_without_a_mask_decoder_says_so_where_masks_are_asked_for(omni_checkpoint, loaded, encode):
    plain = load_model(omni_checkpoint, is_trainable=False)
    with pytest.raises(ValueError, match="has no mask decoder"):
        AuroraPipeline(plain, clip_options=loaded.clip_options)
    words = AuroraPipeline(plain, task=MultipleChoice(), clip_options=loaded.clip_options, max_completion_length=2)
    [said] = words(video=[np.zeros((56, 56, 3), np.uint8)] * 2, text="Which?", choices=["dog", "drum"]).references
    assert said.masks is None
