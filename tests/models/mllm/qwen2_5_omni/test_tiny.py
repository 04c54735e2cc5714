import pytest
import torch
from transformers import (
    AutoProcessor,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    WhisperFeatureExtractor,
)

from aurora_rl.models.mllm.qwen2_5_omni.tiny import MULTIMODAL_TOKENS, TinyOmniConfig, build_tiny_omni
from tests.conversations import build_messages

TEXTS = ["Look: I see a drum and a bell.\nAnswer: the target is the drum. It is [SEG]."] * 4
SEGMENTER = {"type": "dot", "image_size": 32, "width": 8}


@pytest.fixture(scope="module")
def tiny():
    return build_tiny_omni(TEXTS, SEGMENTER)


def test_processor_is_made_of_the_real_classes(tiny):
    _, processor = tiny
    assert type(processor) is Qwen2_5OmniProcessor
    assert type(processor.tokenizer) is Qwen2Tokenizer
    assert type(processor.image_processor) is Qwen2VLImageProcessor
    assert type(processor.video_processor) is Qwen2VLVideoProcessor
    assert type(processor.feature_extractor) is WhisperFeatureExtractor


def test_model_is_the_real_thinker_and_small(tiny):
    model, _ = tiny
    assert isinstance(model, Qwen2_5OmniThinkerForConditionalGeneration)
    assert sum(parameter.numel() for parameter in model.parameters()) < 500_000


def test_frequent_words_are_single_tokens(tiny):
    tokenizer = tiny[1].tokenizer
    assert [tokenizer.decode([i]) for i in tokenizer("I see a drum and a bell.").input_ids] == [
        "I", " see", " a", " drum", " and", " a", " bell", ".",
    ]  # fmt: skip


def test_text_never_seen_survives_as_bytes(tiny):
    tokenizer = tiny[1].tokenizer
    text = "Ein Hühnchen kräht 🐓 zweimal."
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_vocabulary_is_padded_and_holds_seg(tiny):
    model, processor = tiny
    rows = model.get_input_embeddings().weight.size(0)
    assert rows % 64 == 0
    assert len(processor.tokenizer) <= rows
    assert processor.tokenizer.convert_tokens_to_ids("[SEG]") == len(processor.tokenizer) - 1


def test_multimodal_tokens_are_single_and_known_to_the_config(tiny):
    model, processor = tiny
    config, tokenizer = model.config, processor.tokenizer
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in MULTIMODAL_TOKENS.items()}
    assert all(tokenizer(token).input_ids == [ids[name]] for name, token in MULTIMODAL_TOKENS.items())
    assert ids["audio_token"] == config.audio_token_id
    assert ids["video_token"] == config.video_token_id
    assert ids["image_token"] == config.image_token_id
    assert ids["audio_bos_token"] == config.audio_start_token_id
    assert ids["vision_bos_token"] == config.vision_start_token_id


def test_new_model_never_says_multimodal_tokens(tiny):
    model, processor = tiny
    ids = processor.tokenizer.convert_tokens_to_ids(list(MULTIMODAL_TOKENS.values()))
    logits = model.lm_head(torch.randn(2, 64))
    assert (logits.softmax(-1)[:, ids] == 0).all()


def test_chat_template_by_hand(tiny):
    _, processor = tiny
    messages = build_messages("the drum", frames=[0], instruction="find {reference}", system_prompt="be brief")
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nbe brief<|im_end|>\n"
        "<|im_start|>user\n<|vision_bos|><|VIDEO|><|vision_eos|><|audio_bos|><|AUDIO|><|audio_eos|>"
        "find the drum<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_saved_processor_comes_back_the_same(tiny, tmp_path):
    _, processor = tiny
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is Qwen2_5OmniProcessor
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert again.chat_template == processor.chat_template
    assert again.video_processor.to_dict() == processor.video_processor.to_dict()
    assert again.feature_extractor.to_dict() == processor.feature_extractor.to_dict()
    text = "<|im_start|>user\nI see. It is [SEG].<|im_end|>"
    assert again.tokenizer(text).input_ids == processor.tokenizer(text).input_ids


def test_seed_decides_the_weights(tiny):
    model, _ = tiny
    torch.manual_seed(123)  # the state of the caller's generator does not matter
    same, _ = build_tiny_omni(TEXTS, SEGMENTER)
    other, _ = build_tiny_omni(TEXTS, SEGMENTER, TinyOmniConfig(seed=1))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize(("hidden_size", "num_heads"), [(64, 4), (96, 2), (32, 1)])
def test_rotary_sections_fill_half_a_head(hidden_size, num_heads):
    model, _ = build_tiny_omni(TEXTS, SEGMENTER, TinyOmniConfig(hidden_size=hidden_size, num_heads=num_heads))
    sections = model.config.text_config.rope_parameters["mrope_section"]
    assert sum(sections) == hidden_size // num_heads // 2
    assert min(sections) > 0
