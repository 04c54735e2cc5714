"""Texts of rows that spell a control token of some model, found without any model.

A tokenizer reads `[SEG]`, `<|im_end|>` or `<|audio_pad|>` as one token with a special meaning wherever it stands. Texts
from outside that hold one are refused, row by row, when they are encoded (`models.control_tokens`); which spellings
are tokens is the model's own, so that a row which is told of here may still pass with another model.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

#: Tokens of the heads, at which predictions are made. At the end of a chain they are the answer.
HEAD_TOKENS = r"\[(?:SEG|BOX)\]"
#: Spellings of control tokens of the families here: `<|im_end|>`, Gemma's `<|turn>` and `<turn|>`, and plain ones.
CONTROL_TOKEN = re.compile(
    rf"{HEAD_TOKENS}|<\|[^<>|\s]+\|?>|<[^<>|\s]+\|>|</?(?:tool_call|tool_response)>"
    r"|<(?:bos|eos|pad|unk|mask|sound|unused\d+)>"
)
ANSWER = re.compile(rf"{HEAD_TOKENS}\W*$")


def find_control_token(texts: Iterable[str | None], *, completions: Iterable[str | None] = ()) -> str | None:
    """Return the first spelling of a control token in a row's texts, None if there is none.

    >>> find_control_token(["the drum <|im_end|>"]), find_control_token([], completions=["It is [SEG]."])
    ('<|im_end|>', None)

    Args:
        texts: texts that are put to a model.
        completions: texts that a model learns to write, whose end may be a head's token.
    """
    named = [*texts, *(ANSWER.sub("", text) for text in completions if text)]
    found = (CONTROL_TOKEN.search(unicodedata.normalize("NFC", text)) for text in named if text)
    return next((match[0] for match in found if match), None)
