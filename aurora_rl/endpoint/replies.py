"""Readers of a reply with status 200: the model's text, its tokens, or an error that a proxy sent so."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from aurora_rl.endpoint.errors import BadReplyError
from aurora_rl.endpoint.refusals import Refusal, refusal_of


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens of one or more requests, as the endpoint counted them.

    Attributes:
        requests: number of requests that had a reply, valid or not.
        prompt_tokens: number of tokens in the prompts.
        completion_tokens: number of tokens in the completions.
        uncounted: number of requests whose reply had no counts.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


def read_usage(completion: object) -> Usage | None:
    """Read the tokens of a reply; None if it is not a completion, which costs nothing."""
    from openai.types.chat import ChatCompletion

    if not isinstance(completion, ChatCompletion):
        return None
    usage = getattr(completion, "usage", None)
    prompt_tokens, completion_tokens = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    if isinstance(prompt_tokens, int) and isinstance(completion_tokens, int):
        return Usage(1, prompt_tokens, completion_tokens)
    return Usage(requests=1, uncounted=1)


def refusal_inside(completion: object) -> Refusal | None:
    """Read the error that proxies send with status 200, instead of a reply or inside it; None if there is none."""
    choices = getattr(completion, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    error = getattr(completion, "error", None) or getattr(choice, "error", None)
    if not error:
        return None
    status = error.get("code") if isinstance(error, dict) else None
    return refusal_of(status if isinstance(status, int) and 400 <= status < 600 else 500, error)


def read_text(completion: object) -> str:
    """Read the model's text; the package builds its objects without checking them.

    Raises:
        BadReplyError: if the text is cut off, refused or missing.
    """
    choices = getattr(completion, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = getattr(choice, "message", None)
    text, refusal = _join_parts(getattr(message, "content", None))
    refusal = getattr(message, "refusal", None) or refusal
    if refusal:
        raise BadReplyError("refused", f"the model refuses: {refusal}")
    finish_reason = getattr(choice, "finish_reason", None)
    if finish_reason == "content_filter":
        raise BadReplyError("refused", "the endpoint's filter stopped the reply")
    if finish_reason == "length":
        raise BadReplyError("cut_off", "the reply was cut off: raise max_tokens")
    if not isinstance(text, str) or not text.strip():
        said = f": {completion}" if isinstance(completion, str) else ""  # a web page instead of JSON
        raise BadReplyError("broken_body", f"the response holds no text of a model{said}")
    return text


def read_json_object(text: str) -> dict[str, Any]:
    """Parse the first JSON object of a reply; without a schema a model may write text or a fence before it.

    Raises:
        BadReplyError: if there is none.
    """
    text = text.rpartition("</think>")[2]
    start = text.find("{")
    try:
        fields, _ = json.JSONDecoder().raw_decode(text, max(start, 0))
    except (ValueError, RecursionError) as error:
        raise BadReplyError("invalid_json", f"no JSON object in the reply ({error}): {text[:80]!r}") from None
    if not isinstance(fields, dict):
        raise BadReplyError("invalid_json", f"the reply is no JSON object: {text[:80]!r}")
    return fields


def _join_parts(content: object) -> tuple[object, str]:
    """Return text and refusal of a message's content; some endpoints send a list of parts. Thinking is skipped."""
    if not isinstance(content, list):
        return content, ""
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    told = [part for part in parts if isinstance(part, dict)]
    texts = [part.get("text") for part in told if part.get("type", "text") in ("text", "output_text")]
    refusals = [str(part.get("refusal") or "") for part in told if part.get("type") == "refusal"]
    return "".join(text for text in texts if isinstance(text, str)), " ".join(refusals).strip()
