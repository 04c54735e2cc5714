"""Calls of tools outside of GRPO's own loop: those that a row of supervised fine-tuning holds, and those of evaluation.

A row's calls stand in its further column `calls`, in the order in which they are made, each in a turn of its own:

    {"reference": "How loud is it from 1 to 2 s?", "answer": "quiet", ...,
     "calls": [{"name": "loudness", "arguments": {"start_s": 1, "end_s": 2}}]}

What the tools answer is never stored: the run's environment is asked about the row's clip.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from trl.chat_template_utils import parse_response

from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.files.plain import parse_json
from aurora_rl.models.encoding import SampleEncoder
from aurora_rl.models.end_of_turn import end_token_ids
from aurora_rl.models.mllm import MLLMFamily
from aurora_rl.models.mllm.tool_calls import ToolFormat, ToolTurns
from aurora_rl.rollout.environments import Environment, ToolsError, answers_of, load_environment, tool_schemas

#: Column of a row that holds its calls.
CALLS_COLUMN = "calls"

Call = Mapping[str, Any]


class ToolRunner:
    """Runs calls on rows' clips.

    Args:
        environment_factory: what makes an environment, or its name.
        load: function that reads a row's media.

    Attributes:
        schemas: the tools in JSON schema.

    Raises:
        ToolsError: if the environment cannot be used.
    """

    def __init__(
        self, environment_factory: str | Callable[[], Environment], load: Callable[[AVSample], AVClip]
    ) -> None:
        self._make = load_environment(environment_factory)
        self._load = load
        self.schemas = tool_schemas(self._make)

    @property
    def names(self) -> list[str]:
        """The tools' names."""
        return [schema["function"]["name"] for schema in self.schemas]

    def check(self, samples: Iterable[AVSample]) -> None:
        """Check the rows' calls before the first one is made.

        Raises:
            ToolsError: naming the first row whose calls are malformed, or call a tool that there is not.
        """
        for sample in samples:
            for call in calls_of(sample):
                if call["name"] not in self.names:
                    raise ToolsError(
                        f"sample {sample.key} calls {call['name']!r}, but the tools are {', '.join(self.names)}: fix "
                        f"the row's {CALLS_COLUMN}, or name another environment_factory"
                    )

    def environment(self, sample: AVSample) -> Environment:
        """Make the environment of a row, reset with the row and its clip."""
        environment = self._make()
        read_clip = functools.cache(functools.partial(self._load, sample))
        environment.reset(**sample.to_row(), sample=sample, read_clip=read_clip)
        return environment

    def run(self, environment: Environment, call: Call) -> str:
        """Run a call and return what it tells.

        Raises:
            ValueError: if there is no such tool; a tool may raise any other exception.
            ToolsError: if it answers with pictures.
        """
        if call["name"] not in self.names:
            raise ValueError(f"Tool {call['name']} not found.")
        content = getattr(environment, call["name"])(**call["arguments"])
        # As TRL does: a list may hold pictures, anything else is told as text.
        content = content if isinstance(content, list) else str(content)
        [answer] = answers_of([{"name": call["name"], "content": content}])
        return answer

    def answer(self, environment: Environment, call: Call) -> str:
        """Run a call of a model; an exception becomes the answer, in the words in which GRPO tells it.

        Raises:
            ToolsError: if the tool answers with pictures.
        """
        try:
            return self.run(environment, call)
        except ToolsError:
            raise
        except Exception as error:  # whatever a tool does, the model is told
            return str({"error": str(error)})

    def made(self, sample: AVSample) -> list[tuple[Call, str]]:
        """Make a row's own calls, and return each with its answer.

        Raises:
            ToolsError: naming the row, if its calls are malformed or a tool fails.
        """
        calls = calls_of(sample)
        environment = self.environment(sample) if calls else None
        made: list[tuple[Call, str]] = []
        for call in calls:
            assert environment is not None
            try:
                made.append((call, self.run(environment, call)))
            except Exception as error:
                raise ToolsError(
                    f"sample {sample.key}: the call {dict(call)} fails ({error}): fix it, or drop the row"
                ) from error
        return made


class Caller(ToolRunner):
    """Runs calls, and writes and reads their turns as token ids.

    Args:
        encode: encoder of the rows, whose prompts show the tools from now on.
        environment_factory: what makes an environment, or its name.

    Raises:
        ToolsError: if the environment cannot be used.
        ValueError: if the family's prompts show no tools.
    """

    def __init__(self, encode: SampleEncoder, environment_factory: str | Callable[[], Environment]) -> None:
        super().__init__(environment_factory, encode.load)
        tool_format = tool_format_of(encode.family)
        self._end_of_turn = end_token_ids(encode.tokenizer, None)[0]
        self._reader: Any = tool_format.reading(encode.processor)
        self._turns = ToolTurns(tool_format, encode.tokenizer)
        encode.tools = self.schemas

    @property
    def call_token_id(self) -> int:
        """The token with which every call begins."""
        return self._turns.call_ids({"name": "", "arguments": {}})[0]

    def read(self, completion_ids: Sequence[int], prompt_ids: Sequence[int]) -> tuple[str, list[Call]]:
        """Read a turn of the model: what it has said in words, and its calls."""
        prefix, tools = list(prompt_ids), list(self.schemas)
        turn = parse_response(self._reader.tokenizer, list(completion_ids), prefix=prefix, tools=tools)
        return turn["content"], [call["function"] for call in turn.get("tool_calls") or ()]

    def answer_ids(self, answers: Sequence[str]) -> list[int]:
        """Return the tokens between a turn with calls and the next one."""
        return self._turns.ids(answers)

    def taught_turns(self, sample: AVSample) -> list[tuple[list[int], bool]]:
        """Return the turns before a row's target, in order: token ids, and whether they are the model's own."""
        turns: list[tuple[list[int], bool]] = []
        for call, answer in self.made(sample):
            turns.append(([*self._turns.call_ids(call), self._end_of_turn], True))
            turns.append((self.answer_ids([answer]), False))
        return turns


def calls_of(sample: AVSample) -> list[Call]:
    """Return the calls of a row's column `calls`; none where it has no such column.

    Raises:
        ToolsError: naming the row, if the column holds anything else.
    """
    given = sample.extra_columns.get(CALLS_COLUMN)
    try:
        calls = parse_json(given) if isinstance(given, str) else given or []
    except ValueError as error:
        raise ToolsError(f"sample {sample.key}: {CALLS_COLUMN} is {given!r}, which is no JSON: {error}") from None
    is_list = isinstance(calls, list) and all(isinstance(call, dict) for call in calls)
    if not is_list or not all(isinstance(c.get("name"), str) and isinstance(c.get("arguments"), dict) for c in calls):
        raise ToolsError(
            f"sample {sample.key}: {CALLS_COLUMN} is {given!r}: expected a list such as "
            '[{"name": "loudness", "arguments": {"start_s": 1, "end_s": 2}}], or none'
        )
    return [{"name": call["name"], "arguments": call["arguments"]} for call in calls]


def tool_format_of(family: MLLMFamily) -> ToolFormat:
    """Return the way in which a family's prompts show tools.

    Raises:
        ValueError: if it has none.
    """
    if family.tool_format is None:
        raise ValueError(
            f"environment_factory is set, but {type(family).__name__} has no tool_format, by which its prompts "
            "show tools: choose another family (docs/tool_calls.md), or give it one once its second turns are tested"
        )
    return family.tool_format
