"""Answers with calls: their turns are those of a rollout, and who decides on calls may be set."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from aurora_rl.assembly.calling import CallingArguments, CallingPredictor
from aurora_rl.data.sample import AVSample
from aurora_rl.evaluation.of_model import EvaluationArguments
from aurora_rl.inference.predictor import SeededSampling
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.loading import LoadedModel
from aurora_rl.rollout.calls import Caller
from aurora_rl.scripts.asked_rows import AskArguments
from aurora_rl.scripts.collect_mistakes import MistakeArguments
from aurora_rl.scripts.pass_rates import PassRateArguments
from aurora_rl.scripts.tool_table import ToolTableArguments

CALL = '<tool_call>\n{"name": "loudness", "arguments": {"start_s": 0, "end_s": 1}}\n</tool_call>'
EARS = "aurora_rl.rollout.clip_tools:Ears"


class Scripted(CallingPredictor):
    """Says the next of `turns` to the rows that are asked; when there is none left, generates."""

    turns: list[list[str]]
    asked: list[list[int]]

    def generate(self, rows: Any, noise: SeededSampling | None = None) -> list[torch.Tensor]:
        self.asked = [row.prompt.prompt_ids for row in rows]
        if not self.turns:
            return super().generate(rows, noise)
        tokenizer = self.encode.tokenizer
        return [torch.tensor([*tokenizer(text).input_ids, tokenizer.eos_token_id]) for text in self.turns.pop(0)]


@pytest.fixture
def make(loaded: LoadedModel, encode: SampleEncoder) -> Callable[..., Scripted]:
    def make(*turns: list[str], **options: Any) -> Scripted:
        options = {"max_completion_length": 600, **options}
        predictor = Scripted(Caller(encode, EARS), loaded.model, encode, **options)
        predictor.turns = list(turns)
        return predictor

    return make


def encoded(predictor: Scripted, samples: list[AVSample]) -> list[EncodedSample]:
    return [predictor.encode(samples[index]) for index in (0, 4)]


def test_a_row_that_calls_goes_on_with_what_it_is_told(
    make: Callable[..., Scripted], train_samples: list[AVSample]
) -> None:
    predictor = make(["I know.", f"Hm. {CALL}"], ["It is [SEG]."])
    first, second = encoded(predictor, train_samples)
    [one], [other] = predictor.complete([first, second])
    assert (one.text, one.num_calls) == ("I know.", 0) and one.mask_probs is None
    assert other.num_calls == 1 and other.text.startswith("Hm.") and other.text.endswith("\nIt is [SEG].")
    assert "whole clip" not in other.text and other.mask_probs is not None
    (prompt,) = predictor.asked
    assert prompt[: len(second.prompt.prompt_ids)] == second.prompt.prompt_ids
    told = predictor.encode.tokenizer.decode(prompt[len(second.prompt.prompt_ids) :])
    call = {"name": "loudness", "arguments": {"start_s": 0, "end_s": 1}}
    answer = predictor.caller.answer(predictor.caller.environment(second.sample), call)
    assert f"<tool_response>\n{answer}\n</tool_response>" in told
    assert (
        predictor.head_scores(second, other) == {"called": 1.0} and predictor.head_scores(first, one)["called"] == 0.0
    )


def test_a_token_inside_a_call_asks_for_no_masks(make: Callable[..., Scripted], train_samples: list[AVSample]) -> None:
    asked = CALL.replace('"end_s": 1', '"end_s": "[SEG]"')
    for append_seg in (False, True):
        predictor = make([asked, f"It is [SEG]. {asked}"], ["I see nothing."] * 2, append_seg=append_seg)
        [one], [other] = predictor.complete(encoded(predictor, train_samples))
        assert (one.mask_probs is not None) == append_seg and other.mask_probs is not None


def test_turns_and_tokens_have_their_limits(make: Callable[..., Scripted], train_samples: list[AVSample]) -> None:
    once = make([CALL] * 2, [CALL] * 2, max_iterations=1)
    assert [(each.text, each.num_calls) for [each] in once.complete(encoded(once, train_samples))] == [("", 2)] * 2
    room = len(once.encode.tokenizer(CALL).input_ids) + 10
    cut = make([CALL] * 2, max_completion_length=room)  # no answer fits
    assert [(each.text, each.num_calls) for [each] in cut.complete(encoded(cut, train_samples))] == [("", 1)] * 2


def test_calls_can_be_barred_and_forced(make: Callable[..., Scripted], train_samples: list[AVSample]) -> None:
    found = {}
    for tool_calls in ("never", "always"):
        predictor = make(tool_calls=tool_calls, max_completion_length=4)
        rows = encoded(predictor, train_samples)
        token = predictor.caller.call_token_id
        predictor.model.lm_head.bias.zero_()
        predictor.model.lm_head.bias[token] = 1e3 if tool_calls == "never" else -1e3
        found[tool_calls] = [(ids == token).int().tolist() for ids in predictor.generate(rows)]
    assert all(not any(row) for row in found["never"])
    assert all(row[0] == 1 and not any(row[1:]) for row in found["always"])


def test_a_later_turn_draws_the_same_whatever_the_others_of_its_batch_say() -> None:
    def second_turn(names: list[str], tokens_of_the_first: int) -> torch.Tensor:
        noise = SeededSampling(names, temperature=1.0)
        for _ in range(tokens_of_the_first):
            noise(torch.empty(0), torch.zeros(len(names), 5))
        return noise.of_turn(1, [names.index("a")])(torch.empty(0), torch.zeros(1, 5))

    alone = second_turn(["a"], 3)
    assert torch.equal(second_turn(["b", "a"], 7), alone)
    first = SeededSampling(["a"], temperature=1.0).of_turn(0, [0])(torch.empty(0), torch.zeros(1, 5))
    assert not torch.equal(first, alone)
    assert torch.equal(first, SeededSampling(["a"], temperature=1.0)(torch.empty(0), torch.zeros(1, 5)))


@pytest.mark.parametrize(
    "options, told",
    [
        ({"tool_calls": "often", "environment_factory": EARS}, "choose one of"),
        ({"tool_calls": "never"}, "set environment_factory"),
        ({"environment_factory": EARS, "use_vllm": True}, "leave use_vllm out"),
        ({"max_tool_calling_iterations": -1}, "max_tool_calling_iterations is -1: expected 0 or more"),
        ({"temperature": 0.0}, "temperature is 0.0: it must be above 0; greedy answers"),
        ({"batch_size": 0}, "batch_size is 0: expected 1 or more"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        CallingArguments(**options)


def test_no_script_that_asks_a_model_takes_fewer_than_no_samples() -> None:
    table = functools.partial(ToolTableArguments, output="table.jsonl")
    rows = [
        functools.partial(kind, output="rows.jsonl") for kind in (AskArguments, PassRateArguments, MistakeArguments)
    ]
    for kind in (EvaluationArguments, table, *rows):
        with pytest.raises(ValueError, match=r"num_samples is -1: expected 0 or more"):
            kind(num_samples=-1)
        with pytest.raises(ValueError, match=r"temperature is -1"):
            kind(temperature=-1.0)
    for kind in (table, *rows):
        with pytest.raises(ValueError, match=r"max_rows is -5: expected 1 or more"):
            kind(max_rows=-5)
