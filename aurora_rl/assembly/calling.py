"""Answers with calls of tools: the options of an evaluation, and the predictor that calls between its turns.

The turns are those of GRPO's rollouts: the same prompts, answers and limits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor

from aurora_rl.assembly.sampling import SamplingArguments
from aurora_rl.inference.predictor import Completion, Predictor, SeededSampling
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.loading import LoadedModel
from aurora_rl.rollout.calls import Caller

#: Values of `tool_calls`: the model decides on calls; it is barred from them; each answer begins with one.
CALL_CHOICES = ("chosen", "never", "always")
#: Score of an answer, by name, and what it means.
CALLED = "called"
CALLED_MEANS = "the answer called a tool"


@dataclasses.dataclass(kw_only=True)
class CallingArguments(SamplingArguments):
    """The tools that answers may call.

    Attributes:
        environment_factory: what makes the environment whose tools are called, named as in GRPO; None for no tools.
        max_tool_calling_iterations: number of turns with calls that are answered; None for as many as fit.
        tool_calls: "chosen" where the model decides; "never" bars it from calling; "always" begins each answer with a
            call, whose rest the model writes.

    Raises:
        ValueError: if `tool_calls` is unknown, or given without tools; or vLLM shall answer; or a number is too small.
    """

    environment_factory: str | None = dataclasses.field(
        default=None,
        metadata={"help": "Tools that answers may call: a class as 'package.module:Name' or 'path/to/mine.py:Name'."},
    )
    max_tool_calling_iterations: int | None = dataclasses.field(
        default=None, metadata={"help": "Number of turns with calls that are answered; by default as many as fit."}
    )
    tool_calls: str = dataclasses.field(
        default="chosen", metadata={"help": "Who decides on calls: chosen (the model), never or always."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tool_calls not in CALL_CHOICES:
            raise ValueError(f"tool_calls={self.tool_calls!r}: choose one of {CALL_CHOICES}")
        if self.environment_factory is None and self.tool_calls != "chosen":
            raise ValueError(f"tool_calls is {self.tool_calls!r}, but there are no tools: set environment_factory")
        if self.environment_factory is not None and self.use_vllm:
            raise ValueError("environment_factory is set, but vLLM's answers call no tools yet: leave use_vllm out")

    def least(self) -> dict[str, int]:
        """Return the smallest values of the numbers that a script adds."""
        return {**super().least(), "max_tool_calling_iterations": 0}


@dataclasses.dataclass
class _Rollout:
    """What has been said in answer to a row.

    Attributes:
        row: the row, whose prompt goes on with the turns before.
        ids: token ids of all turns.
        words: what the model has said in words, by its turns.
        num_calls: number of its calls.
    """

    row: EncodedSample
    ids: list[int] = dataclasses.field(default_factory=list)
    words: list[str] = dataclasses.field(default_factory=list)
    num_calls: int = 0


class CallingPredictor(Predictor):
    """A predictor whose model may call the tools of an environment; `max_completion_length` is that of all turns.

    Args:
        caller: what runs calls.
        max_iterations: number of turns with calls that are answered; None for as many as fit.
        tool_calls: who decides on calls, one of `CALL_CHOICES`.
        *args, **options: those of `Predictor`.
    """

    def __init__(
        self, caller: Caller, *args: Any, max_iterations: int | None = None, tool_calls: str = "chosen", **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.caller = caller
        self.max_iterations = max_iterations
        self.tool_calls = tool_calls

    def _complete_rows(self, rows: Sequence[EncodedSample], noise: SeededSampling | None) -> list[Completion]:
        """Let all rows answer, and those that call go on with what they are told."""
        rollouts = [_Rollout(row) for row in rows]
        environments = [self.caller.environment(row.sample) for row in rows]
        asking, iterations = list(range(len(rows))), 0
        while asking:
            own_noise = None if noise is None else noise.of_turn(iterations, asking)
            turns = self.generate([rollouts[index].row for index in asking], own_noise)
            may_go_on = self.max_iterations is None or iterations < self.max_iterations
            calls = {index: self._say(rollouts[index], turn) for index, turn in zip(asking, turns, strict=True)}
            asking = []
            for index, made in calls.items():
                if made and may_go_on:
                    answers = [self.caller.answer(environments[index], call) for call in made]
                    asking += [index] if self._tell(rows[index], rollouts[index], answers) else []
            iterations += 1
        predictions = self.predict_rows(rows, [torch.tensor(each.ids, device=self.model.device) for each in rollouts])
        return [
            dataclasses.replace(self._completion("\n".join(filter(None, each.words)), found), num_calls=each.num_calls)
            for each, found in zip(rollouts, predictions, strict=True)
        ]

    def _say(self, rollout: _Rollout, turn: torch.Tensor) -> list[Any]:
        """Add a turn of the model, cut where the answer has no room for more, and return its calls."""
        ids = turn.tolist()[: self.max_completion_length - len(rollout.ids)]
        words, calls = self.caller.read(ids, rollout.row.prompt.prompt_ids) if ids else ("", [])
        rollout.ids += ids
        rollout.words.append(words)
        rollout.num_calls += len(calls)
        return calls

    def _tell(self, row: EncodedSample, rollout: _Rollout, answers: Sequence[str]) -> bool:
        """Add the turn of the tools, if it fits with a turn after it; say whether it does."""
        ids = self.caller.answer_ids(answers)
        if len(rollout.ids) + len(ids) >= self.max_completion_length:
            return False
        rollout.ids += ids
        rollout.row = dataclasses.replace(row, prompt=row.prompt.extended(rollout.ids))
        return True

    def logits_processors(
        self, rows: Sequence[EncodedSample], noise: SeededSampling | None, prompt_length: int
    ) -> list[LogitsProcessor]:
        """Return what changes the logits, see `Predictor.logits_processors`; here also what decides on calls."""
        is_first_turn = not rows[0].prompt.engine.said
        usual = super().logits_processors(rows, noise, prompt_length)
        if self.tool_calls == "never":
            return [*usual, _Barred(self.caller.call_token_id)]
        if self.tool_calls == "always" and is_first_turn:
            return [*usual, _First(self.caller.call_token_id, prompt_length)]
        return usual

    def head_scores(self, row: EncodedSample, completion: Completion) -> dict[str, float | None]:
        """Score what another head than that of masks predicts, and whether a tool was called."""
        return {**super().head_scores(row, completion), CALLED: float(completion.num_calls > 0)}


class _Barred(LogitsProcessor):
    """Bars a token."""

    def __init__(self, token_id: int) -> None:
        self.token_id = token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(1, torch.tensor([self.token_id], device=scores.device), -torch.inf)


class _First(LogitsProcessor):
    """Lets every completion begin with a token."""

    def __init__(self, token_id: int, prompt_length: int) -> None:
        self.token_id = token_id
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.size(1) > self.prompt_length:
            return scores
        return torch.full_like(scores, -torch.inf).index_fill(
            1, torch.tensor([self.token_id], device=scores.device), 0.0
        )


def assemble_calling_predictor(
    args: CallingArguments, loaded: LoadedModel, encode: SampleEncoder, *, append_seg: bool
) -> CallingPredictor:
    """Build the predictor that calls the tools of `args.environment_factory`.

    Args:
        args: the options, which name an environment.
        loaded: the model on its device.
        encode: encoder of the rows, whose prompts show the tools from now on.
        append_seg: see `Predictor`.

    Raises:
        ToolsError: if the environment cannot be used.
        ValueError: if the family's prompts show no tools.
    """
    assert args.environment_factory is not None
    return CallingPredictor(
        Caller(encode, args.environment_factory),
        loaded.model,
        encode,
        max_completion_length=args.max_completion_length,
        batch_size=args.batch_size,
        append_seg=append_seg,
        max_iterations=args.max_tool_calling_iterations,
        tool_calls=args.tool_calls,
    )
