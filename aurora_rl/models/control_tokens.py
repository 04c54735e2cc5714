"""Untrusted text never becomes a control token: neither `[SEG]` nor a turn of the chat nor a medium's placeholder.

A tokenizer reads some strings as one token with a special meaning at any place: `<|im_end|>` ends a turn, `[SEG]` asks
for masks. References, categories and chains of thought come from tables that anybody may have written, so a text that
would give such a token is refused. The token ids decide, not the characters of the text: tokenizers strip spaces and
normalise letters before they look for their tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from aurora_rl.data.sample import AVSample
from aurora_rl.tasks.base import PromptText, Target

SHOWN_TEXT = 120  # characters of a text shown in an error


class ControlTokenError(ValueError):
    """An untrusted text holds characters that the tokenizer reads as a control token."""


def control_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of all tokens that were added to the vocabulary, special or not, `[SEG]` included."""
    return frozenset(tokenizer.added_tokens_decoder) | frozenset(tokenizer.all_special_ids)


def own_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a conversation with the recipe's own texts only, without any untrusted text."""

    def own(text: str) -> str:
        return text.own if isinstance(text, PromptText) else ""

    def own_part(part: Mapping[str, Any]) -> dict[str, Any]:
        return {**part, "text": own(part["text"])} if part["type"] == "text" else dict(part)

    return [
        {
            **message,
            "content": own(message["content"])
            if isinstance(message["content"], str)
            else [own_part(part) for part in message["content"]],
        }
        for message in messages
    ]


def check_prompt(tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], own_text: str, text: str) -> None:
    """Check that a prompt has the control tokens of its own text, in their order, and no others.

    Args:
        tokenizer: the model's tokenizer.
        prompt_ids: the prompt's token ids.
        own_text: the prompt without untrusted text.
        text: the untrusted text, for the error.

    Raises:
        ControlTokenError: naming the first token that must not be there.
    """
    control = control_token_ids(tokenizer)
    expected = [token for token in _ids(tokenizer, own_text) if token in control]
    found = [token for token in prompt_ids if token in control]
    if found == expected:
        return
    different = [
        token for token, other in zip(found, [*expected, *[None] * len(found)], strict=False) if token != other
    ]
    raise _refusal(tokenizer, different[0] if different else expected[len(found)], text)


def check_target(tokenizer: PreTrainedTokenizerBase, target: Target, *, answer_token: str | None) -> None:
    """Check that a completion has no control token but the one of its answer, at the end.

    Args:
        tokenizer: the model's tokenizer.
        target: the completion.
        answer_token: token of the task's answer, `Task.answer_token`; None if no control token may be there.

    Raises:
        ControlTokenError: naming the first other control token.
    """
    text = target.given + target.learned
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    control = control_token_ids(tokenizer)
    answer_token_id = None if answer_token is None else tokenizer.convert_tokens_to_ids(answer_token)
    for token, (start, end) in zip(tokens.input_ids, tokens.offset_mapping, strict=True):
        is_last = not any(character.isalnum() for character in text[end:])  # a full stop may follow
        is_answer = token == answer_token_id and start >= len(target.given) and is_last
        if token in control and not is_answer:
            raise _refusal(tokenizer, token, text)


def check_messages(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]) -> None:
    """Check every text of a conversation before its clip is read.

    Args:
        tokenizer: the model's tokenizer.
        messages: chat messages of a task. What a `PromptText` has of its own may hold control tokens; its other parts,
            and a text that is a plain string, may not.

    Raises:
        ControlTokenError: naming the first text from outside that holds a control token.
    """
    for text in texts_of(messages):
        own, outside = (text.own, text.outside) if isinstance(text, PromptText) else ("", text)
        check_prompt(tokenizer, _ids(tokenizer, text), own, outside or text)


def texts_of(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the texts of a conversation, in order."""
    contents = [message["content"] for message in messages]
    parts = [[content] if isinstance(content, str) else [p.get("text") for p in content] for content in contents]
    return [text for texts in parts for text in texts if text is not None]


@contextlib.contextmanager
def naming(sample: AVSample) -> Iterator[None]:
    """Name the row of a refused text at the start of the error."""
    try:
        yield
    except ControlTokenError as error:
        if not sample.origin:
            raise
        raise ControlTokenError(f"clip {sample.uid!r} (row {sample.row}, {sample.origin}): {error}") from error


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def _refusal(tokenizer: PreTrainedTokenizerBase, token: int, text: str) -> ControlTokenError:
    shown = text if len(text) <= SHOWN_TEXT else f"{text[:SHOWN_TEXT]}..."
    return ControlTokenError(
        f"{shown!r} holds what the tokenizer reads as its control token {tokenizer.convert_ids_to_tokens(token)!r}: "
        "write it in other words"
    )
