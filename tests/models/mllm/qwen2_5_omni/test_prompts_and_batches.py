"""Qwen2.5-Omni's prompts, batches and tokens, under both of its model types; what all families do: test_contract.py."""

import functools
import itertools
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import WhisperFeatureExtractor
from trl.trainer.utils import add_fused_lm_head

from aurora_rl.models.collate import right_pad
from aurora_rl.models.grounding import shared_media
from aurora_rl.models.loading import LoadedModel, load_model
from aurora_rl.models.mllm import EncodedPrompt, get_family
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily, padded_length
from tests.conversations import build_messages

SEGMENTER = {"type": "dot", "image_size": 32, "width": 8}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SECOND = 16_000


@pytest.fixture(scope="module", params=sorted(Qwen2_5OmniFamily.model_types))
def checkpoint(request: pytest.FixtureRequest) -> str:
    """A tiny checkpoint of each model type, without network."""
    fixtures = {"qwen2_5_omni": "omni_checkpoint", "qwen2_5_omni_thinker": "tiny_checkpoint"}
    return request.getfixturevalue(fixtures[request.param])


@pytest.fixture(scope="module")
def loaded(checkpoint: str) -> LoadedModel:
    """Read-only."""
    return load_model(checkpoint, segmenter=SEGMENTER)


@pytest.fixture
def own(checkpoint: str) -> LoadedModel:
    """For tests that change the model."""
    return load_model(checkpoint, segmenter=SEGMENTER)


def noise(num_samples: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, num_samples).astype(np.float32)


def make_messages(
    *, num_frames: int | None = 4, size: tuple[int, int] = (64, 64), has_audio: bool = True, text: str = "the drum"
) -> list[dict]:
    frames = None
    if num_frames is not None:
        pixels = np.random.default_rng(0).integers(0, 256, (num_frames, *size, 3), dtype=np.uint8)
        frames = [Image.fromarray(frame) for frame in pixels]
    options = {"sample_fps": 2.0, "min_pixels": 256, "max_pixels": 65536}
    return build_messages(text, frames=frames, has_audio=has_audio, instruction="{reference}", video_options=options)


def encode(
    loaded: LoadedModel, waveform: np.ndarray | None, *, fps: float = 2.0, interleaved: bool = False, **kwargs
) -> EncodedPrompt:
    messages = make_messages(has_audio=waveform is not None and not interleaved, **kwargs)
    return loaded.family.encode(loaded.processor, messages, waveform=waveform, fps=fps, use_audio_in_video=interleaved)


def forward(
    loaded: LoadedModel,
    prompts: list[EncodedPrompt],
    *,
    clips: list[EncodedPrompt] | None = None,
    media_index: list[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, L, V) of right-padded prompts, and their attention mask; of shared media, the distinct `clips`."""
    batch = right_pad([prompt.prompt_ids for prompt in prompts], [[]] * len(prompts), 0)
    features = [prompt.features for prompt in clips or prompts]
    media = loaded.family.collate_features(features, media_index or range(len(features))) if features[0] else {}
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return loaded.model(**inputs, **media).logits, batch["attention_mask"].bool()


# Encoding


def test_every_model_type_is_recognised(checkpoint, loaded):
    assert isinstance(loaded.model, loaded.family.model_class)
    assert type(get_family(loaded.model.config.model_type)) is type(loaded.family)  # once saved, too


@pytest.mark.parametrize("num_frames", [1, 3, 4])
@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_placeholders_are_as_many_as_features(loaded, num_frames, size):
    prompt = encode(loaded, noise(2 * SECOND), num_frames=num_frames, size=size)
    model, features = loaded.model, prompt.features
    ids = torch.tensor([prompt.prompt_ids])
    with torch.no_grad():
        video = model.get_video_features(features["pixel_values_videos"], features["video_grid_thw"]).pooler_output
        audio = model.get_audio_features(features["input_features"], features["feature_attention_mask"])
    num_pairs = (num_frames + 1) // 2  # two frames make a patch; an odd last one stands twice
    assert sum(map(len, video)) == num_pairs * (size[0] // 16) * (size[1] // 16)
    assert (ids == model.config.video_token_id).sum() == sum(map(len, video))
    assert (ids == model.config.audio_token_id).sum() == len(audio.last_hidden_state) == 25  # 100 columns, 4 a token


def test_frames_a_second_reach_the_model(loaded):
    """Two frames a patch: at 2 frames a second a patch lasts one second, at 1 two."""
    assert encode(loaded, noise(SECOND), fps=2.0).features["video_second_per_grid"].tolist() == [1.0]
    assert encode(loaded, noise(SECOND), fps=1.0).features["video_second_per_grid"].tolist() == [2.0]
    [slow, fast] = (forward(loaded, [encode(loaded, noise(SECOND), fps=fps)])[0] for fps in (1.0, 2.0))
    assert not torch.allclose(slow, fast, **CLOSE)


def test_pixels_and_sound_reach_the_model(loaded):
    logits, _ = forward(loaded, [encode(loaded, noise(SECOND))])
    other_sound, _ = forward(loaded, [encode(loaded, noise(SECOND, seed=1))])
    prompt = encode(loaded, noise(SECOND))
    prompt.features["pixel_values_videos"].neg_()
    other_frames, _ = forward(loaded, [prompt])
    assert not torch.allclose(logits[:, -1], other_sound[:, -1], **CLOSE)
    assert not torch.allclose(logits[:, -1], other_frames[:, -1], **CLOSE)


def test_prompt_without_sound(loaded):
    prompt = encode(loaded, None)
    assert loaded.model.config.audio_token_id not in prompt.prompt_ids
    assert not prompt.features["feature_attention_mask"].any()
    assert forward(loaded, [prompt])[0].isfinite().all()


def test_prompt_of_text_alone(loaded):
    prompt = encode(loaded, None, num_frames=None)
    assert prompt.features == {}
    assert loaded.processor.tokenizer.decode(prompt.prompt_ids).count("the drum") == 1
    assert forward(loaded, [prompt])[0].isfinite().all()


@pytest.mark.parametrize(("has_audio", "waveform"), [(True, None), (False, noise(SECOND))])
def test_sound_without_its_placeholder_and_the_reverse_are_errors(loaded, has_audio, waveform):
    messages = make_messages(has_audio=has_audio)
    with pytest.raises(ValueError, match=r"AUDIO\|> where"):
        loaded.family.encode(loaded.processor, messages, waveform=waveform, fps=2.0)


def test_engine_prompt_has_each_placeholder_once(loaded):
    prompt = encode(loaded, noise(2 * SECOND))
    tokens = loaded.processor.tokenizer.convert_ids_to_tokens(prompt.engine.prompt_ids)
    assert [tokens.count(token) for token in ("<|VIDEO|>", "<|AUDIO|>", "<|IMAGE|>")] == [1, 1, 0]
    assert prompt.engine.messages == [
        {"role": "user", "content": [{"type": "video"}, {"type": "audio"}, {"type": "text", "text": "the drum"}]}
    ]
    [(frames, metadata)], [(waveform, sampling_rate)] = prompt.engine.media["video"], prompt.engine.media["audio"]
    assert (frames.shape, frames.dtype, metadata["fps"]) == ((4, 64, 64, 3), np.uint8, 2.0)
    assert (len(waveform), sampling_rate) == (2 * SECOND, SECOND)


def test_interleaved_sound_has_no_placeholder_of_its_own(loaded):
    prompt = encode(loaded, noise(2 * SECOND), interleaved=True)
    tokens = loaded.processor.tokenizer.convert_ids_to_tokens(prompt.engine.prompt_ids)
    assert [tokens.count(token) for token in ("<|VIDEO|>", "<|AUDIO|>")] == [1, 0]
    assert set(prompt.engine.media) == {"video", "audio"}
    assert prompt.engine.processor_options["second_per_grid_ts"] == [1.0]  # 2 frames a grid at 2 frames a second


def test_interleaved_positions_are_those_of_transformers_with_its_flag(loaded):
    prompt = encode(loaded, noise(7 * SECOND), num_frames=12, interleaved=True)
    tokens = loaded.processor.tokenizer.convert_ids_to_tokens(prompt.prompt_ids)
    runs = [token for token, _ in itertools.groupby(tokens)]
    start = runs.index("<|vision_bos|>")
    # Chunks of 50 positions: two seconds of frames, and four of sound, which the tiny tower hears in 12.5 tokens each.
    chunks = ["<|VIDEO|>", "<|AUDIO|>", "<|VIDEO|>", "<|AUDIO|>", "<|VIDEO|>"]
    assert runs[start : start + 9] == ["<|vision_bos|>", "<|audio_bos|>", *chunks, "<|audio_eos|>", "<|vision_eos|>"]
    features = loaded.family.collate_features([prompt.features], [0])
    arguments = {
        "input_ids": torch.tensor([prompt.prompt_ids]),
        "video_grid_thw": features["video_grid_thw"],
        "attention_mask": torch.ones(1, len(prompt.prompt_ids), dtype=torch.long),
        "audio_seqlens": features["feature_attention_mask"].sum(-1),
        "second_per_grids": features["video_second_per_grid"],
    }
    stock = functools.partial(loaded.model.stock.get_rope_index, loaded.model)
    expected, expected_deltas = stock(**arguments, use_audio_in_video=True)
    found, deltas = loaded.model.get_rope_index(**arguments)
    assert torch.equal(found, expected) and torch.equal(deltas, expected_deltas)
    assert not torch.equal(stock(**arguments)[0], expected)  # the flag forgotten: no error, other positions


def test_rows_with_sound_between_and_after_the_frames_share_a_batch(loaded):
    prompts = [
        encode(loaded, noise(4 * SECOND, seed=seed), num_frames=8, interleaved=interleaved, text=text)
        for seed, interleaved, text in ((1, True, "the drum"), (2, False, "the bell"), (3, True, "the dog"))
    ]
    together, mask = forward(loaded, prompts)
    for row, prompt in enumerate(prompts):
        alone, _ = forward(loaded, [prompt])
        assert_close(together[row][mask[row]], alone[0], **CLOSE)


def test_sound_between_the_frames_needs_sound(loaded):
    with pytest.raises(ValueError, match="clip without sound"):
        encode(loaded, None, interleaved=True)


def test_reference_that_holds_a_placeholder_is_an_error(loaded):
    with pytest.raises(ValueError, match=r"the prompt has 2 <\|VIDEO\|> where 1 are given"):
        encode(loaded, noise(SECOND), text="the <|VIDEO|> drum")


def test_sound_too_short_for_one_token_is_an_error(loaded):
    """3 columns of 320 samples make the first token: 641 samples."""
    assert encode(loaded, noise(641)).prompt_ids.count(loaded.model.config.audio_token_id) == 1
    with pytest.raises(ValueError, match="640 samples, but the audio tower hears nothing below 641"):
        encode(loaded, noise(640))


# Sound


@pytest.mark.parametrize(
    ("num_samples", "chunk_length"),
    [(641, 30), (SECOND, 30), (SECOND + 1, 30), (2 * SECOND - 1, 30), (2 * SECOND + 399, 30), (SECOND + 1, 300)],
)
def test_short_padding_gives_the_spectrogram_of_the_usual_padding(num_samples, chunk_length):
    """At the published hop and window; Whisper pads to 30 s, Qwen2.5-Omni's processor on the hub to 300 s."""
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=chunk_length, return_attention_mask=True)
    waveform = noise(num_samples)
    padded = {
        max_length: extractor(
            [waveform], sampling_rate=SECOND, max_length=max_length, return_attention_mask=True, return_tensors="pt"
        )
        for max_length in (None, padded_length(waveform, extractor))
    }
    usual, short = padded.values()
    length = int(usual["attention_mask"].sum())
    assert int(short["attention_mask"].sum()) == length == -(-num_samples // 160)
    assert_close(short["input_features"][..., :length], usual["input_features"][..., :length], rtol=0, atol=1e-6)


def test_sound_longer_than_the_usual_padding_is_not_cut(loaded):
    prompt = encode(loaded, noise(31 * SECOND))
    assert prompt.features["input_features"].shape == (1, 32, 31 * 50)


def test_spectrogram_carries_no_padding(loaded):
    features = encode(loaded, noise(2 * SECOND)).features
    assert features["input_features"].shape == (1, 32, 100)  # 50 columns a second
    assert features["feature_attention_mask"].tolist() == [[1] * 100]


# Batches


def test_sounds_of_different_lengths_share_a_batch(loaded):
    prompts = [encode(loaded, noise(n, seed=n)) for n in (2 * SECOND, 5000, SECOND)]
    logits, mask = forward(loaded, prompts)
    for row, prompt in enumerate(prompts):
        alone, _ = forward(loaded, [prompt])
        assert_close(logits[row, mask[row]], alone[0], **CLOSE)


def test_clips_of_different_shapes_share_a_batch(loaded):
    shapes = [(4, (64, 64)), (1, (48, 80)), (3, (32, 32))]
    prompts = [encode(loaded, noise(SECOND), num_frames=frames, size=size) for frames, size in shapes]
    logits, mask = forward(loaded, prompts)
    for row, prompt in enumerate(prompts):
        alone, _ = forward(loaded, [prompt])
        assert_close(logits[row, mask[row]], alone[0], **CLOSE)


def test_a_batch_holds_each_clip_once(loaded):
    clips = [encode(loaded, noise(n), num_frames=f).features for n, f in ((SECOND, 2), (2 * SECOND, 4))]
    batch = loaded.family.collate_features(clips, [0, 1, 0])
    assert batch["pixel_values_videos"].size(0) == 64 + 128
    assert batch["input_features"].shape == (2, 32, 100)
    assert batch["video_grid_thw"].tolist() == [[1, 8, 8], [2, 8, 8]]
    assert batch["video_second_per_grid"].tolist() == [1.0] * 2
    assert batch["feature_attention_mask"].sum(1).tolist() == [50, 100]


def test_rows_that_share_images_read_what_they_would_read_alone(loaded):
    """Two images a row, the first and the last row of the same clip."""
    prompts = []
    for seed in (0, 1):
        pixels = np.random.default_rng(seed).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
        images = [{"type": "image", "image": Image.fromarray(image)} for image in pixels]
        messages = [{"role": "user", "content": [*images, {"type": "text", "text": "the drum"}]}]
        prompts.append(loaded.family.encode(loaded.processor, messages, waveform=None, fps=1.0))
    batch = right_pad([prompts[i].prompt_ids for i in (0, 1, 0)], [[]] * 3, 0)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    media = loaded.family.collate_features([prompt.features for prompt in prompts], [0, 1, 0])
    assert len(media["pixel_values"]) == sum(len(prompt.features["pixel_values"]) for prompt in prompts)
    with torch.no_grad(), shared_media(loaded.model, [0, 1, 0]):
        shared = loaded.model(**inputs, **media).logits
    for row, clip in enumerate((0, 1, 0)):
        alone, _ = forward(loaded, [prompts[clip]])
        assert_close(shared[row, : alone.size(1)], alone[0], **CLOSE)
    assert (shared[0] - shared[1]).abs().max() > 0.01


def test_collating_leaves_the_clips_alone(loaded):
    """The G rows of a group hold the same tensors, batch after batch."""
    clips = [encode(loaded, noise(n)).features for n in (SECOND, 2 * SECOND)]
    shapes = {name: tensor.shape for name, tensor in clips[0].items()}
    loaded.family.collate_features(clips, [0, 1])
    assert {name: tensor.shape for name, tensor in clips[0].items()} == shapes


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0]])
def test_clips_with_and_without_sound_share_a_batch(loaded, order):
    """Each answers as it does alone, whether the towers read a clip once a row or once for all of its rows."""
    sounds = [None, noise(SECOND), None, noise(2 * SECOND, seed=1)]
    prompts = [encode(loaded, sounds[i], num_frames=i + 1) for i in order]
    alone = [forward(loaded, [prompt])[0][0] for prompt in prompts]
    logits, mask = forward(loaded, prompts)
    twice = [prompt for prompt in prompts for _ in range(2)]
    media_index = [i // 2 for i in range(8)]
    with shared_media(loaded.model, media_index):
        shared, shared_mask = forward(loaded, twice, clips=prompts, media_index=media_index)
    for row, expected in enumerate(alone):
        assert_close(logits[row, mask[row]], expected, **CLOSE)
        assert_close(shared[2 * row, shared_mask[2 * row]], expected, **CLOSE)
        assert_close(shared[2 * row + 1, shared_mask[2 * row + 1]], expected, **CLOSE)


def test_a_batch_without_sound_runs_the_audio_tower_for_nothing(own):
    """Under ZeRO-3 a rank that skips a module, forward or backward, leaves the others waiting for its weights."""
    prompt = encode(own, None)
    runs = []
    first = next(module for module in own.model.audio_tower.modules() if isinstance(module, torch.nn.Linear))
    first.register_forward_hook(lambda *_: runs.append("forward"))
    first.register_full_backward_hook(lambda *_: runs.append("backward"))
    ids = torch.tensor([prompt.prompt_ids])
    own.model(input_ids=ids, attention_mask=torch.ones_like(ids), **prompt.features).logits.square().sum().backward()
    assert runs == ["forward", "backward"]
    grads = [p.grad for p in own.model.audio_tower.parameters() if p.grad is not None]
    assert grads and all(grad.eq(0).all() for grad in grads)
    assert own.model.lm_head.weight.grad.ne(0).any()


# Tokens that a completion may never hold


def test_all_multimodal_tokens_of_the_tokenizer_are_known(loaded):
    """Placeholders and delimiters, by the names that the tokenizer itself gives them."""
    tokenizer = loaded.processor.tokenizer
    parts = ("image_token", "audio_token", "video_token", "vision_bos_token", "vision_eos_token")
    names = (*parts, "audio_bos_token", "audio_eos_token")
    expected = sorted(tokenizer.convert_tokens_to_ids(getattr(tokenizer, name)) for name in names)
    assert loaded.family.multimodal_token_ids(loaded.model.config) == expected
    assert not {loaded.seg_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} & set(expected)


@torch.no_grad()
def favour(loaded: LoadedModel, token_ids: list[int]) -> None:
    """Make these tokens by far the likeliest next ones, whatever came before."""
    head = loaded.model.lm_head
    head.weight.zero_()
    loaded.model.model.norm.weight.zero_()
    direction = torch.ones(head.weight.size(1))
    loaded.model.model.norm.register_forward_hook(lambda _module, _args, output: output + direction)
    head.weight[token_ids] = 1.0  # logits of 64 against 0


def test_multimodal_tokens_have_no_probability_in_forward(own):
    ids = own.family.multimodal_token_ids(own.model.config)
    favour(own, ids)
    logits, _ = forward(own, [encode(own, noise(SECOND))])
    assert (logits.softmax(-1)[..., ids] == 0).all()


@pytest.mark.parametrize("do_sample", [False, True])
def test_multimodal_tokens_are_never_generated(own, do_sample):
    ids = own.family.multimodal_token_ids(own.model.config)
    favour(own, ids)
    prompt = encode(own, noise(SECOND))
    input_ids = torch.tensor([prompt.prompt_ids])
    sequences = own.model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        **prompt.features,
        max_new_tokens=20,
        do_sample=do_sample,
        top_k=0,
    )
    completion_ids = sequences[0, input_ids.size(1) :].tolist()
    assert completion_ids
    assert not set(completion_ids) & set(ids)


def test_multimodal_tokens_have_no_probability_in_trls_fused_log_probs(own):
    """Even if one were in a completion, and at the sampling temperature."""
    multimodal = own.family.multimodal_token_ids(own.model.config)
    favour(own, multimodal)
    completion = [*multimodal, own.seg_token_id]
    prompt = encode(own, None, num_frames=None)
    batch = right_pad([prompt.prompt_ids], [completion], 0)
    add_fused_lm_head(own.model, temperature=1.0, outputs=("log_probs", "entropy"))
    # The placeholders would ask for media: their states are taken from the ids of ordinary tokens.
    input_ids = batch["input_ids"].clone()
    input_ids[:, -len(completion) :] = own.seg_token_id
    with torch.no_grad():
        outputs = own.model(
            input_ids=input_ids, attention_mask=batch["attention_mask"], labels=batch["labels"], fused_lm_head=True
        )
    log_probs = outputs.log_probs[0, -len(completion) :]
    assert (log_probs[:-1].exp() == 0).all()
    num_others = own.model.lm_head.weight.size(0) - len(multimodal)
    assert log_probs[-1].item() == pytest.approx(-np.log(num_others), abs=1e-4)  # the others share all of it
    assert outputs.entropy[0, -1].item() == pytest.approx(np.log(num_others), abs=1e-4)


# What is frozen and what is adapted


def test_towers_and_lora_targets_exist(loaded):
    names = [name for name, _ in loaded.model.named_modules()]
    for tower in loaded.family.tower_names:
        assert tower in names
    adapted = [name for name in names if re.fullmatch(loaded.family.lora_target_modules, name)]
    assert len(adapted) == 2 * loaded.model.config.get_text_config().num_hidden_layers
    assert not any(name.startswith(loaded.family.tower_names) for name in adapted)
