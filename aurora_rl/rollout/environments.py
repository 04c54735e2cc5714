"""An environment holds the tools of one rollout: its public methods are what the model may call while it answers.

`reset` is handed the rollout's row, clip included, so that a tool takes no path and no name of a clip from the model.
`docs/tool_calls.md` shows how to write one.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from transformers.utils import DocstringParsingException, TypeHintParsingException, get_json_schema

from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.named.objects import load_object

#: Public methods that TRL calls itself, which are no tools.
NO_TOOLS = ("reset", "get_reward")
#: Begins a call in a completion, see `models.mllm.tool_calls`.
CALL = "<tool_call>"


class ToolsError(ValueError):
    """An environment cannot be used: it is no environment, or one of its tools is not described or answers no text."""


class Environment(Protocol):
    """The tools of one rollout: all public methods but `reset` and `get_reward`.

    A tool has type hints and a docstring with `Args:`, which the prompt shows to the model. It answers in words; an
    exception becomes its answer and is counted. An instance serves one rollout at a time and is used again.
    """

    def reset(self, **row: Any) -> None:
        """Begin a rollout.

        Args:
            **row: the columns of the dataset's row; `sample`, the row as `AVSample`; and `read_clip`, a function that
                returns the clip's frames and sound as `AVClip`, which are read when it is first called.
        """


def load_environment(spec: str | Callable[[], Environment]) -> Callable[[], Environment]:
    """Load what makes an environment for each rollout, and check its tools.

    Args:
        spec: `"package.module:Name"`, `"path/to/mine.py:Name"`, or a class or function without arguments.

    Raises:
        NamedObjectError: if there is no such object.
        ToolsError: if it makes no environment, see `tool_schemas`.
    """
    factory = load_object(spec, what="environment") if isinstance(spec, str) else spec
    if not callable(factory):
        raise ToolsError(f"environment_factory {spec!r} is a {type(factory).__name__}: name a class, or a function")
    tool_schemas(factory)
    return factory


def tool_schemas(factory: Callable[[], Environment]) -> list[dict[str, Any]]:
    """Return the tools of an environment as the prompt describes them, in JSON schema.

    Raises:
        ToolsError: if the environment has no `reset` or no tool, or a tool lacks a type hint or a description.
    """
    environment = factory()
    name = type(environment).__name__
    functions = dict(inspect.getmembers(type(environment), predicate=inspect.isfunction))
    tools = [tool for tool in functions if not tool.startswith("_") and tool not in NO_TOOLS]
    if "reset" not in functions or not tools:
        lacks = "no method `reset(self, **row)`" if "reset" not in functions else "no tool, that is, no public method"
        raise ToolsError(f"{name} is no environment: it has {lacks}")
    return [_schema(getattr(environment, tool), f"{name}.{tool}") for tool in tools]


def _schema(tool: Callable[..., Any], name: str) -> dict[str, Any]:
    try:
        return get_json_schema(tool)
    except (DocstringParsingException, TypeHintParsingException) as error:
        raise ToolsError(
            f"the tool {name} cannot be shown to the model: {error}. Give each argument a type hint, and a line under "
            "`Args:` in the docstring"
        ) from error


def with_clips(
    inputs: Sequence[Mapping[str, Any]], rows: Sequence[EncodedSample], encode: SampleEncoder
) -> list[dict[str, Any]]:
    """Add to a batch's rows what `Environment.reset` gets beside them; rollouts of one row read its clip once.

    Args:
        inputs: the dataset's rows.
        rows: the same rows, encoded.
        encode: their encoder, which reads a clip as the model is given it, muted where an ablation mutes.
    """
    readers = {id(row): functools.cache(functools.partial(encode.load, row.sample)) for row in rows}
    return [
        {**given, "sample": row.sample, "read_clip": readers[id(row)]} for given, row in zip(inputs, rows, strict=True)
    ]


def answers_of(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what tools have answered.

    Raises:
        ToolsError: if an answer is no text, such as a picture.
    """
    for message in messages:
        if not isinstance(message["content"], str):
            raise ToolsError(f"the tool {message['name']!r} has answered with {message['content']!r}: return a text")
    return [message["content"] for message in messages]


def as_logged(completion: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a rollout's messages as they can be printed and stored, whatever the model has put into its calls.

    Arguments become the JSON text of an object: a column of a table has one type, and those of a model any. What UTF-8
    cannot write, as half of a surrogate pair, becomes a question mark.
    """
    messages = [{key: writable(value) for key, value in message.items()} for message in completion]
    for message in messages:
        for call in message.get("tool_calls") or ():
            call["function"]["arguments"] = _object_text(call["function"]["arguments"])
    return messages


def writable(value: Any) -> Any:
    """Return a copy of plain data whose texts UTF-8 can write."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {writable(key): writable(item) for key, item in value.items()}
    return list(map(writable, value)) if isinstance(value, list) else value


def _object_text(given: Any) -> str:
    """Return arguments of a call as the JSON text of an object, which those of a log already are."""
    try:
        if isinstance(given, str) and isinstance(json.loads(given), dict):
            return given
    except ValueError:
        pass
    return json.dumps(given if isinstance(given, dict) else {"arguments": given})


def tool_metrics(completion: Sequence[Mapping[str, Any]], max_iterations: int) -> Iterator[tuple[str, float]]:
    """Yield what a rollout's calls came to, each 0 or 1, so that the mean is a share of rollouts.

    `tools/rollouts_with_a_call`: a tool was asked. `tools/out_of_iterations`: the last call has no answer, since the
    turns were used up. `tools/no_room`: its answer did not fit into the completion, or nothing fitted after it.
    `tools/unreadable`: something begins like a call and is none.

    Args:
        completion: messages of the rollout, tools' included.
        max_iterations: largest number of turns with calls that are answered.
    """
    calls = [bool(message.get("tool_calls")) for message in completion]
    is_tool = [message["role"] == "tool" for message in completion]
    answered = sum(call and after for call, after in zip(calls, is_tool[1:], strict=False))
    is_open, is_spent = calls[-1], answered >= max_iterations
    yield "tools/rollouts_with_a_call", float(any(calls))
    yield "tools/out_of_iterations", float(is_open and is_spent)
    yield "tools/no_room", float(is_open and not is_spent or is_tool[-1])
    said = (message["content"] for message, tool in zip(completion, is_tool, strict=True) if not tool)
    yield "tools/unreadable", float(any(CALL in text for text in said))
