"""Spellings of control tokens are found in rows, as the families' tokenizers have them."""

import pytest

from aurora_rl.data.control_texts import CONTROL_TOKEN, find_control_token
from aurora_rl.models.control_tokens import control_token_ids
from aurora_rl.models.mllm import MLLM_FAMILIES
from tests.models.test_control_tokens import FORGED, HARMLESS


@pytest.mark.parametrize("text", FORGED)
def test_forged_tokens_are_found_in_what_is_asked(text: str) -> None:
    assert find_control_token(["the drum", text]) is not None


@pytest.mark.parametrize("text", [*HARMLESS, None, "", "a < b | c > d", "see [1]"])
def test_other_texts_are_left_alone(text: str | None) -> None:
    assert find_control_token([text], completions=[text]) is None


def test_a_completion_may_end_with_its_answer_alone() -> None:
    assert find_control_token([], completions=["It is [SEG].", "It is [BOX]"]) is None
    assert find_control_token([], completions=["[SEG] is it", "x"]) == "[SEG]"
    assert find_control_token([], completions=["It is [SEG]. No, it is [SEG]."]) == "[SEG]"
    assert find_control_token(["It is [SEG]."]) == "[SEG]"


@pytest.mark.parametrize("name", ["qwen2_5_omni", "qwen3_vl", "qwen3_omni_moe", "gemma4", "audioflamingo3"])
def test_every_control_token_of_a_family_is_one_of_the_spellings(name: str) -> None:
    head = {"type": "dot", "image_size": 32, "width": 8}
    _, processor = MLLM_FAMILIES[name]().build_tiny(["a b"], segmenter=head)
    tokens = processor.tokenizer.convert_ids_to_tokens(sorted(control_token_ids(processor.tokenizer)))
    assert tokens and [token for token in tokens if not CONTROL_TOKEN.fullmatch(token)] == []
