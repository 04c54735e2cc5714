"""How tools stand in a chat: what the prompt says of them, how a call is read, and the turn in which they answer.

A checkpoint's chat template that knows no tools is not replaced: a prelude turns what it does not know into messages
that it does, so that a chat without tools is rendered as before. No torch is imported.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aurora_rl.files.plain import read_text_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

#: Stands for a tool's answer, or a call's JSON, in a `ToolFormat`.
ANSWER = "{answer}"


@dataclasses.dataclass(frozen=True)
class ToolFormat:
    """The way in which a family's checkpoints write tools.

    Attributes:
        prelude_file: Jinja beside this file that changes `messages` before the checkpoint's own template sees them.
        call: text of a call, with `{answer}` in the place of its JSON, as `prelude_file` writes it.
        response: transformers' `response_template`, which reads calls out of a completion.
        turn_start: text between the end of a call's turn and the first answer.
        answer: text of an answer, with `{answer}` in its place; answers to one turn's calls are lines of one turn.
        turn_end: text between the last answer and the next completion.
    """

    prelude_file: str
    call: str
    response: Mapping[str, Any]
    turn_start: str
    answer: str
    turn_end: str

    def template(self, own: str) -> str:
        """Return a checkpoint's own chat template as one that knows tools; twice is as once."""
        prelude = read_text_file(Path(__file__).with_name(self.prelude_file)).strip()
        return own if own.startswith(prelude) else prelude + own

    def options(self, processor: ProcessorMixin, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the arguments of `apply_chat_template` that show tools in a prompt; none without tools."""
        if not tools:
            return {}
        return {"tools": list(tools), "chat_template": self.template(str(processor.chat_template))}

    def shown(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """Return what a prompt without a system message of its own says of tools."""
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self.template("{{ messages[0].content }}")
        texts, _ = render_jinja_template([[{"role": "user", "content": ""}]], tools=list(tools), chat_template=template)
        return str(texts[0])

    def written(self, call: Mapping[str, Any], answer: str) -> str:
        """Return a call and the answer to it as text."""
        return self.call.replace(ANSWER, call_json(call)) + self.turn_start + self.answer.replace(ANSWER, answer)

    def reading(self, processor: ProcessorMixin) -> ProcessorMixin:
        """Return a processor that reads and writes calls; the given one, whose parts it shares, stays as it is."""
        reader: Any = copy.copy(processor)
        reader.tokenizer = copy.copy(reader.tokenizer)
        reader.chat_template = self.template(str(processor.chat_template))
        reader.tokenizer.response_template = dict(self.response)
        return reader


def call_json(call: Mapping[str, Any]) -> str:
    """Write a call, `name` and `arguments`, as the chat template does."""
    return json.dumps(dict(call), ensure_ascii=False)


class ToolTurns:
    """Writes the turns in which tools answer, as token ids.

    What a tool says is text from outside, and may repeat what the model has written to it. It never becomes a control
    token: the turn's own tokens are put between parts that a tokenizer without any of them has read.

    Args:
        tool_format: the family's format.
        tokenizer: the model's tokenizer.
    """

    def __init__(self, tool_format: ToolFormat, tokenizer: PreTrainedTokenizerBase) -> None:
        from tokenizers import Tokenizer

        backend: Any = tokenizer
        state = json.loads(backend.backend_tokenizer.to_str())
        state |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        self._words = Tokenizer.from_str(json.dumps(state))
        self._format = tool_format
        self._control = {token.content: token_id for token_id, token in backend.added_tokens_decoder.items()}
        longest_first = sorted(self._control, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def ids(self, answers: Sequence[str]) -> list[int]:
        """Return the tokens between a call's turn and the next completion.

        Args:
            answers: answers to the calls of one turn, in order.
        """
        frame = self._format.turn_start + "\n".join([self._format.answer] * len(answers)) + self._format.turn_end
        return self._filled(frame, answers)

    def call_ids(self, call: Mapping[str, Any]) -> list[int]:
        """Return the tokens of a call, as the model would write it, without its end of turn.

        Args:
            call: `name` and `arguments`; they are text from outside as well.
        """
        return self._filled(self._format.call, [call_json(call)])

    def _filled(self, frame: str, texts: Sequence[str]) -> list[int]:
        """Return the tokens of a text of the format, with texts from outside in the places for them."""
        left = iter(texts)
        ids: list[int] = []
        for part in self._split.split(frame):
            if part in self._control:
                ids.append(self._control[part])
            else:
                text = re.sub(re.escape(ANSWER), lambda _: next(left), part)
                # A call's JSON may spell half a surrogate pair, which no tokenizer reads.
                text = text.encode(errors="replace").decode()
                ids += self._words.encode(text, add_special_tokens=False).ids
        return ids


class CallFinder:
    """Finds the tokens of calls in what a model has written, tags included: what stands there is said to a tool.

    A call that is not closed lasts until its turn ends. What tools answer cannot open or close one: turns are told
    apart by control tokens, which no answer holds.

    Args:
        tool_format: the family's format.
        tokenizer: the model's tokenizer.
    """

    def __init__(self, tool_format: ToolFormat, tokenizer: PreTrainedTokenizerBase) -> None:
        tags = tool_format.response["fields"]["tool_calls"]
        self._call = re.compile(f"{re.escape(tags['open'])}.*?(?:{tags['close_pattern']}|$)", re.DOTALL)
        added = {token.content: token_id for token_id, token in tokenizer.added_tokens_decoder.items()}
        frame = tool_format.turn_start + tool_format.turn_end
        self._turn_ids = frozenset(token_id for text, token_id in added.items() if text in frame)
        self._tokenizer = tokenizer

    def __call__(self, ids: Sequence[int]) -> list[bool]:
        """Tell of each token of a completion, answering turns included, whether it is one of a call."""
        inside: list[bool] = []
        for _, turn in itertools.groupby(ids, key=lambda token_id: token_id in self._turn_ids):
            texts = self._tokenizer.batch_decode([[token_id] for token_id in turn], skip_special_tokens=False)
            ends = list(itertools.accumulate(map(len, texts)))
            found = self._call.finditer("".join(texts))
            calls = [(match.start(), match.start() + len(match[0].rstrip())) for match in found]
            starts = [end - len(text) for end, text in zip(ends, texts, strict=True)]
            inside += [any(first <= start < last for first, last in calls) for start in starts]
        return inside


#: Qwen's format: calls and answers are JSON and text between tags, and tools answer in a turn of the user.
QWEN_TOOLS = ToolFormat(
    prelude_file="qwen_tools.jinja",
    call=f"<tool_call>\n{ANSWER}\n</tool_call>",
    response={
        "defaults": {"role": "assistant"},
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "tool_calls": {
                "open": "<tool_call>",
                "close_pattern": r"</tool_call>\s*",
                "repeats": True,
                "content": "json",
                "transform": {"type": "function", "function": "{content}"},
            },
            # Words before, between and after calls stay one text, chains of thought included.
            "content": {
                "close_pattern": r"<\|im_end\|>\s*",
                "content": "text",
                "content_args": {"strip": False},
                "repeats": True,
                "join": "",
            },
        },
    },
    turn_start="\n<|im_start|>user\n",
    answer=f"<tool_response>\n{ANSWER}\n</tool_response>",
    turn_end="<|im_end|>\n<|im_start|>assistant\n",
)
