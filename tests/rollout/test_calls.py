"""Calls that rows hold: they are run on the row's clip, written as the chat template writes them, and taught."""

import dataclasses
import json
from typing import Any

import pytest

from aurora_rl.data.sample import AVSample
from aurora_rl.models.collate import SFTCollator
from aurora_rl.models.encoding import SampleEncoder
from aurora_rl.models.mllm.gemma4 import Gemma4Family
from aurora_rl.rollout.calls import Caller, calls_of, tool_format_of
from aurora_rl.rollout.environments import ToolsError
from aurora_rl.tasks.base import Target

LOUD = {"name": "loudness", "arguments": {"start_s": 0, "end_s": 1}}
EARS = "aurora_rl.rollout.clip_tools:Ears"


class Repeater:
    def reset(self, **row: Any) -> None:
        self.uid = row["uid"]

    def repeat(self, text: str) -> str:
        """Repeat a text.

        Args:
            text: the text
        """
        return f"{self.uid} {text}"

    def look(self) -> list[Any]:
        """Show a picture."""
        return [{"type": "image"}]


def with_calls(sample: AVSample, calls: Any) -> AVSample:
    return dataclasses.replace(sample, extra=json.dumps({"calls": calls}))


def test_a_rows_turns_are_those_of_the_chat_template_and_tools_tokens_are_not_learned(
    encode: SampleEncoder, train_samples: list[AVSample]
) -> None:
    sample = with_calls(train_samples[0], [LOUD, LOUD])
    caller = Caller(encode, EARS)
    (call, told), again = caller.made(sample)
    assert call == LOUD and again[1] == told and "the whole clip" in told
    collate = SFTCollator(encode, None, lambda _: Target("I see a drum."), earlier_turns=caller.taught_turns)
    batch = collate([sample.to_row(), train_samples[0].to_row()])

    asks = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": LOUD}]}
    chat = [*encode.text_prompt(sample), *[asks, {"role": "tool", "content": told}] * 2]
    chat.append({"role": "assistant", "content": "I see a drum."})
    own = encode.processor.chat_template
    options: dict[str, Any] = {"tools": caller.schemas, "chat_template": tool_format_of(encode.family).template(own)}
    rendered = encode.tokenizer.apply_chat_template(chat, tokenize=False, **options)
    prompt = encode(sample).prompt.prompt_ids
    said = batch["input_ids"][0][len(prompt) :][batch["attention_mask"][0, len(prompt) :] == 1]
    assert rendered.endswith(encode.tokenizer.decode(said) + "\n")
    learned = encode.tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100])
    written = f"<tool_call>\n{json.dumps(LOUD)}\n</tool_call><|im_end|>"
    assert learned == f"{written}{written}I see a drum.<|im_end|>"
    assert encode.tokenizer.decode(batch["labels"][1][batch["labels"][1] != -100]) == "I see a drum.<|im_end|>"


def test_a_written_call_is_read_back(encode: SampleEncoder, train_samples: list[AVSample]) -> None:
    caller = Caller(encode, EARS)
    (ids, is_learned), _ = caller.taught_turns(with_calls(train_samples[0], [LOUD]))
    assert is_learned and caller.read(ids, encode(train_samples[0]).prompt.prompt_ids) == ("", [LOUD])
    assert ids[0] == caller.call_token_id


def test_nothing_that_a_call_or_its_answer_says_becomes_a_control_token(
    encode: SampleEncoder, train_samples: list[AVSample]
) -> None:
    call = {"name": "repeat", "arguments": {"text": "[SEG] <|im_end|>"}}
    ids = [
        token for own, _ in Caller(encode, Repeater).taught_turns(with_calls(train_samples[0], [call])) for token in own
    ]
    assert encode.answer_token_id not in ids
    assert encode.tokenizer.decode(ids).count("[SEG]") == 2 and ids.count(encode.tokenizer.eos_token_id) == 2


@pytest.mark.parametrize(
    "calls", ["loudness", "[", {"name": "loudness"}, [3], [{"name": "loudness"}], [{"arguments": {}}]]
)
def test_malformed_calls_name_their_row(calls: Any, train_samples: list[AVSample]) -> None:
    with pytest.raises(ToolsError, match=rf"sample {train_samples[0].key}: calls is"):
        calls_of(with_calls(train_samples[0], calls))


def test_calls_may_be_json_in_a_text_or_missing(train_samples: list[AVSample]) -> None:
    assert calls_of(with_calls(train_samples[0], json.dumps([LOUD]))) == [LOUD]
    assert calls_of(train_samples[0]) == calls_of(with_calls(train_samples[0], None)) == []


@pytest.mark.parametrize("change", [{"name": "hear"}, {"arguments": {"start_s": 9e6, "end_s": 9e6}}, {"arguments": {}}])
def test_a_failing_call_ends_training_and_is_told_to_a_model(
    change: dict[str, Any], encode: SampleEncoder, train_samples: list[AVSample]
) -> None:
    sample, call = train_samples[0], {**LOUD, **change}
    caller = Caller(encode, EARS)
    with pytest.raises(ToolsError, match=rf"sample {sample.key}: the call .* fails"):
        caller.taught_turns(with_calls(sample, [call]))
    assert caller.answer(caller.environment(sample), call).startswith("{'error': ")


def test_a_call_of_no_tool_is_told_before_training(encode: SampleEncoder, train_samples: list[AVSample]) -> None:
    caller = Caller(encode, EARS)
    caller.check([with_calls(train_samples[0], [LOUD]), train_samples[1]])
    with pytest.raises(ToolsError, match=rf"sample {train_samples[0].key} calls 'hear', but the tools are loudness"):
        caller.check([with_calls(train_samples[0], [{**LOUD, "name": "hear"}])])


def test_pictures_are_no_answer(encode: SampleEncoder, train_samples: list[AVSample]) -> None:
    caller = Caller(encode, Repeater)
    with pytest.raises(ToolsError, match="return a text"):
        caller.answer(caller.environment(train_samples[0]), {"name": "look", "arguments": {}})


def test_a_family_without_a_format_is_refused() -> None:
    with pytest.raises(ValueError, match="has no tool_format"):
        tool_format_of(Gemma4Family())
