"""What Gemma 4 does otherwise than other families, with towers and without (unified)."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from transformers.models.gemma4.video_processing_gemma4 import get_aspect_ratio_preserving_size

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.model import peft_config
from aurora_rl.models import sharding
from aurora_rl.models.grounding import shared_media
from aurora_rl.models.loading import LoadedModel, freeze, load_model
from aurora_rl.models.mllm.contract import SECOND, TEXTS, Subject
from aurora_rl.models.mllm.gemma4 import DeafGemma4Family, Gemma4Family
from aurora_rl.models.mllm.gemma4.sizes import tokens_of_frame
from aurora_rl.models.mllm.gemma4.tiny import MEDIA_TOKENS
from aurora_rl.models.mllm.gemma4_unified import Gemma4UnifiedFamily
from aurora_rl.models.mllm.processing import _warn_of_limits, collate_features
from aurora_rl.models.mllm.sizes import ClipSize
from aurora_rl.rollout.engine import check_family
from aurora_rl.rollout.export import export_for_vllm
from aurora_rl.rollout.weights import check_adapters, engine_weights

SEGMENTER = {"type": "dot", "image_size": 32, "width": 8}


@pytest.fixture(scope="module", params=[Gemma4Family, Gemma4UnifiedFamily], ids=["towers", "unified"])
def subject(request: pytest.FixtureRequest) -> Subject:
    return Subject.of(request.param())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the hub has it: tied, without a mask head, without `[SEG]`, without a free row."""
    folder = tmp_path_factory.mktemp("plain")
    model, processor = Gemma4Family().build_tiny(TEXTS)
    for layer in model.get_decoder().layers:
        layer.layer_scalar.fill_(0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def tied(plain: Path) -> LoadedModel:
    return load_model(str(plain), segmenter=SEGMENTER)


@torch.no_grad()
def log_probs(model: Any) -> torch.Tensor:
    ids = torch.arange(5, 25)[None]
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.log_softmax(-1)


# ---- the prompt


def test_the_prompt_begins_once(subject: Subject) -> None:
    """The template writes `<bos>`, and the tokenizer would write another."""
    tokenizer = subject.processor.tokenizer
    assert subject.encode().prompt_ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer("<bos>a").input_ids.count(tokenizer.bos_token_id) == 2  # control


def test_all_that_goes_with_media_is_suppressed_below_the_soft_cap(subject: Subject) -> None:
    tokenizer = subject.processor.tokenizer
    ids = subject.family.suppressed_token_ids(subject.processor, subject.model.config)
    assert set(tokenizer.convert_ids_to_tokens(ids)) == {*MEDIA_TOKENS.values(), "<|video|>"}
    logits = subject.model(**subject.batch([subject.encode()], [subject.encode()], [0])).logits[0]
    assert logits[:, ids].max() < -29.9  # the cap is 30: no lower logit is possible
    assert logits.softmax(-1)[:, ids].max() < 1e-6


@pytest.mark.parametrize("longer", [0, 1])
def test_sound_beyond_half_a_minute_is_refused_and_not_cut(subject: Subject, longer: int) -> None:
    if longer:
        with pytest.raises(ValueError, match=r"lasts 30\.\d s, but Gemma4\w*Family hears no more than 30\.0 s of it"):
            subject.encode(sound=30 * SECOND + longer)
        return
    ids = subject.encode(sound=30 * SECOND).prompt_ids
    assert ids.count(subject.model.config.audio_token_id) == 750


def test_the_shortest_sound_is_heard_and_a_shorter_one_refused(subject: Subject) -> None:
    shortest = subject.family.shortest_sound(subject.processor)
    prompt = subject.encode(sound=shortest)
    assert prompt.prompt_ids.count(subject.model.config.audio_token_id) == 1
    subject.logits([prompt])
    if shortest > 1:
        with pytest.raises(ValueError, match=f"has {shortest - 1} samples, but the audio tower hears nothing"):
            subject.encode(sound=shortest - 1)


def test_a_sound_of_unified_has_whole_tokens() -> None:
    """16,077 samples are 25 tokens of 640 and a part of one, which vLLM would leave out."""
    subject = Subject.of(Gemma4UnifiedFamily())
    prompt = subject.encode(sound=16_077)
    [(waveform, _)] = prompt.engine.media["audio"]
    assert len(waveform) == 26 * 640 and not waveform[16_077:].any()
    assert (
        prompt.prompt_ids.count(subject.model.config.audio_token_id) == len(prompt.features["input_features"][0]) == 26
    )


def test_sound_between_the_frames_is_refused_and_not_left_out(subject: Subject) -> None:
    video = {"type": "video", "video": [np.zeros((64, 64, 3), np.uint8)] * 2}
    messages = [{"role": "user", "content": [video, {"type": "text", "text": "the drum"}]}]
    options: dict[str, Any] = {"waveform": np.zeros(SECOND, np.float32), "fps": 1.0}
    with pytest.raises(ValueError, match=r"Gemma4\w*Family has no place for sound between .* use_audio_in_video"):
        subject.family.encode(subject.processor, messages, use_audio_in_video=True, **options)


# ---- frames


def test_frames_are_videos_of_their_own(subject: Subject) -> None:
    """A clip that is padded with frames would get a token for each of them."""
    frames = [subject.encode(frames=count).features["pixel_values_videos"] for count in (4, 2)]
    assert [tuple(f.shape[:2]) for f in frames] == [(4, 1), (2, 1)]
    assert len(collate_features([{"pixel_values_videos": f} for f in frames])["pixel_values_videos"]) == 6
    as_given = [{"pixel_values_videos": f.transpose(0, 1)} for f in frames]  # control: as the processor gives them
    assert collate_features(as_given)["pixel_values_videos"].shape[:2] == (2, 4)


def test_limits_of_pixels_are_told_to_change_nothing(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    _warn_of_limits.cache_clear()
    with caplog.at_level("WARNING"):
        subject.encode(), subject.encode()
    assert caplog.text.count("min_pixels and max_pixels change nothing") == 1


def test_rows_of_a_clip_share_one_pass_over_its_frames(subject: Subject) -> None:
    clips, index, seen = subject.two(), [0, 0, 0, 1], []
    part = subject.model.get_submodule(subject.family.tower_names[0])
    count = lambda _module, args, kwargs: seen.append(len(kwargs.get("pixel_values", args[0] if args else None)))  # noqa: E731
    with part.register_forward_pre_hook(count, with_kwargs=True), shared_media(subject.model, index):
        subject.model(**subject.batch([clips[i] for i in index], clips, index))
    assert seen == [6]  # 4 frames of the one clip and 2 of the other


def test_tokens_of_a_frame_see_each_other_in_unified() -> None:
    """Without `mm_token_type_ids` no error is raised."""
    subject = Subject.of(Gemma4UnifiedFamily())
    inputs = subject.batch([subject.encode()], [subject.encode()], [0])
    with torch.no_grad():
        right = subject.model(**inputs).logits
        wrong = subject.model(**inputs, mm_token_type_ids=torch.zeros_like(inputs["input_ids"])).logits
    assert (right - wrong).abs().max() > 0.1


# ---- positions


def test_padding_at_the_left_moves_no_position(subject: Subject) -> None:
    """In bf16 a scoring pass would differ from the rollout, which counts positions by the mask."""
    model = copy.deepcopy(subject.model).bfloat16()
    rows = [subject.encode(text, frames=0) for text in ("the drum is loud the drum is loud", "the bell")]

    def scored(**options: Any) -> torch.Tensor:
        inputs = subject.batch(rows, rows, [0, 1], left=True) | options
        last = len(rows[1].prompt_ids)
        with torch.no_grad():
            return model(**inputs).logits[1, -last:].float().log_softmax(-1)

    inputs = subject.batch(rows, rows, [0, 1])
    with torch.no_grad():
        alone = model(**inputs).logits[1, : len(rows[1].prompt_ids)].float().log_softmax(-1)
    length = max(len(row.prompt_ids) for row in rows)
    shifted = scored(position_ids=torch.arange(length).expand(2, -1))  # control: as transformers counts
    assert (scored() - alone).abs().max() < (shifted - alone).abs().max()


# ---- a checkpoint of the hub


def test_a_new_head_takes_a_reserved_token_and_its_rows_in_both_tables(plain: Path, tied: LoadedModel) -> None:
    stock, _ = Gemma4Family().build_tiny(TEXTS)
    rows, seg = len(tied.processor.tokenizer), tied.seg_token_id
    decoder = tied.model.get_decoder()
    assert rows == len(decoder.embed_tokens.weight) == len(decoder.embed_tokens_per_layer.weight)
    assert seg == 5  # <unused0>, after <pad>, <eos>, <bos>, <unk> and <mask>
    for name in ("embed_tokens", "embed_tokens_per_layer"):
        before = getattr(stock.get_decoder(), name).weight
        after = getattr(decoder, name).weight
        assert torch.allclose(after[seg], before.mean(0), atol=1e-6)
        assert torch.equal(after[seg + 1 :], before[seg + 1 :])


def test_what_is_saved_and_exported_is_the_same_policy_with_the_same_token(tied: LoadedModel, tmp_path: Path) -> None:
    tied.model.save_pretrained(tmp_path / "saved")
    tied.processor.save_pretrained(tmp_path / "saved")
    folder = export_for_vllm(tied, tmp_path / "engine")
    for path, options in ((tmp_path / "saved", {}), (folder, {"segmenter": SEGMENTER})):
        again = load_model(str(path), **options)
        assert again.seg_token_id == tied.seg_token_id
        assert (log_probs(again.model.eval()) - log_probs(tied.model.eval())).abs().max() < 1e-4
    assert json.loads((folder / "config.json").read_text())["text_config"]["tie_word_embeddings"] is False


def test_what_is_no_parameter_but_saved_goes_to_the_engine(tied: LoadedModel) -> None:
    sent = dict(engine_weights(tied.model, tied.family, towers=True))
    state = {name for name in tied.model.state_dict() if not name.startswith("seg_head")}
    assert sent.keys() == state
    scales = [weight for name, weight in sent.items() if name.endswith("layer_scalar")]
    assert len(scales) == 4 and all(scale == 0.5 for scale in scales)


def test_names_that_the_hub_gives_otherwise(subject: Subject) -> None:
    names = {name for name, _ in engine_weights(subject.model, subject.family, towers=True)}
    if isinstance(subject.family, Gemma4UnifiedFamily):
        projections = {f"model.embed_{part}.embedding_projection.weight" for part in ("vision", "audio")}
        assert projections | {"model.vision_embedder.patch_dense.weight"} <= names
    else:
        assert names <= subject.model.state_dict().keys()


@pytest.mark.parametrize(
    "saved", [[], ["lm_head"], ["lm_head", "embed_tokens", "embed_tokens_per_layer"]], ids="+".join
)
def test_tied_tables_are_trained_and_exported_as_they_are_named(
    tied: LoadedModel, saved: list[str], tmp_path: Path
) -> None:
    args = ModelArguments("", use_peft=True, lora_r=2, lora_modules_to_save=["seg_head", *saved])
    policy = get_peft_model(tied.model, peft_config(args, tied)).eval()
    check_adapters(policy)
    before = log_probs(policy)
    ids = torch.tensor([[6, 7, tied.seg_token_id]])
    policy(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.square().mean().backward()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "modules_to_save" in name and "seg_head" not in name:
                assert parameter.grad is not None and parameter.grad[tied.seg_token_id].any(), name
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "lora_B" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert (log_probs(policy) - before).abs().max() > 0.01  # control
    folder = export_for_vllm(LoadedModel(policy, tied.processor, tied.family), tmp_path / "engine")
    again = load_model(str(folder), segmenter=SEGMENTER).model.eval()
    assert (log_probs(again) - log_probs(policy)).abs().max() < 1e-4


def test_a_size_without_ears_is_a_family_without_ears(tmp_path: Path) -> None:
    model, processor = DeafGemma4Family().build_tiny(TEXTS, segmenter=SEGMENTER)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert type(loaded.family) is DeafGemma4Family and "audio" not in loaded.family.media_limits
    freeze(loaded.model, loaded.family.names_of_parts(["towers"]))
    messages = [{"role": "user", "content": [{"type": "text", "text": "the drum"}]}]
    with pytest.raises(ValueError, match="DeafGemma4Family has no ears"):
        loaded.family.encode(loaded.processor, messages, waveform=np.zeros(SECOND, np.float32), fps=1.0)


def test_vllm_is_refused_where_tokens_of_a_frame_see_each_other() -> None:
    check_family(Gemma4Family())
    for family in (DeafGemma4Family(), Gemma4UnifiedFamily()):
        with pytest.raises(ValueError, match="lets the tokens of a frame see only those before them"):
            check_family(family)


# ---- memory


def test_checkpointing_keeps_the_gradients_of_keys_that_layers_share(tied: LoadedModel) -> None:
    ids = torch.arange(5, 25)[None]

    def gradients() -> list[torch.Tensor | None]:
        tied.model.zero_grad()
        tied.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.square().mean().backward()
        return [None if p.grad is None else p.grad.clone() for p in tied.model.get_decoder().parameters()]

    tied.model.train()
    expected = gradients()
    tied.model.gradient_checkpointing_enable()
    assert any(module.gradient_checkpointing for module in tied.model.get_decoder().layers)
    torch.testing.assert_close(gradients(), expected)


def test_rotary_frequencies_of_each_kind_of_layer_are_restored(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZeRO-3 casts them to bf16 while a model is made."""
    model = copy.deepcopy(subject.model)
    rotary = model.get_decoder().rotary_emb
    expected = {name: buffer.clone() for name, buffer in rotary.named_buffers()}
    rotary.bfloat16()
    monkeypatch.setattr(sharding, "is_deepspeed_zero3_enabled", lambda: True)
    sharding.restore_rotary_frequencies(model)
    torch.testing.assert_close(dict(rotary.named_buffers()), expected)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (720, 1280), (64, 64), (100, 1000), (10, 2000)])
def test_tokens_of_a_frame_are_what_the_processor_makes(height: int, width: int) -> None:
    rows, columns = get_aspect_ratio_preserving_size(height, width, 16, 630, 3)
    assert tokens_of_frame(height, width) == rows // 48 * (columns // 48)


def test_the_estimate_of_a_clip_is_what_the_prompt_takes(subject: Subject) -> None:
    size = (60, 90)
    config, family = subject.model.config, subject.family
    a_pass = family.clip_pass(config, ClipSize(4, size, seconds=2.0))
    prompt = subject.encode(frames=4, size=size, sound=2 * SECOND)
    ids = torch.tensor(prompt.prompt_ids)
    media = int((subject.model.token_types(ids) > 0).sum())
    assert media <= a_pass.prompt_tokens <= media + 4 * 9 + 2
    assert a_pass.towers.keys() == set(family.tower_names)
    for name in family.tower_names:
        subject.model.get_submodule(name)
