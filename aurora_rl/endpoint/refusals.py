"""The meaning of an endpoint's refusal of a request: it concerns one question, or all of them.

The status alone is ambiguous. 403 means a wrong key at one endpoint and a prompt stopped by moderation at another; a
wrong key is 400 at Gemini, and no money left is 429 at OpenAI. So the body is read: its codes first, then its words.

    OpenAI, vLLM   {"error": {"message": "...", "type": "...", "code": "insufficient_quota"}}
    FastAPI        {"detail": "Not Found"}, {"detail": [{"loc": ["body", "top_k"], "msg": "Extra inputs ..."}]}
    Mistral        {"message": {"detail": [...]}}
    TGI, Ollama    {"error": "Input validation error: ...", "error_type": "validation"}
    proxies        text or HTML
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import json
import re
from collections.abc import Iterator

#: Fields that hold words, and fields that hold codes. The quoted request ("input") is neither.
WORD_FIELDS = (
    *("message", "msg", "detail", "error", "errors", "error_message", "error_msg", "error_description"),
    *("description", "title", "reason", "reasons", "metadata", "raw"),
)
CODE_FIELDS = ("code", "type", "error_type", "error_code", "status", "reason")
QUOTING_FIELDS = ("input", "ctx", "flagged_input")
DEEPEST = 8
MOST_WORDS = 20
LONGEST_WORDS = 4000  # characters that are searched

MODERATED_CODE = r"contentfilter|contentpolicy|moderat|responsibleai|datainspection|unsafe|sensitivecontent|safety"
MONEY_CODE = r"insufficient(quota|balance|credit|fund)|billing|paymentrequired|arrearage|creditbalance"
KEY_CODE = r"apikey|authentication|unauthori[sz]ed|accountdeactivated|accessterminated"
RIGHTS_CODE = r"permission|accessdenied"
MODEL_CODE = r"modelnot(found|exist)|(unknown|invalid|nosuch)model|deploymentnotfound"
TOO_LARGE_CODE = r"contextlength|abovemaxlength|toolarge|toolong"

MONEY_WORDS = (
    r"insufficient[ _](quota|balance|credit|fund)|credit balance is too low|out of credits|billing hard limit"
    r"|payment required|(add|purchase|buy|top up) (\w+ )?credits"
)
_BAD = r"invalid|incorrect|expired|missing|revoked|disabled|wrong|required|unknown"
KEY_WORDS = (
    rf"(api|access|auth|secret)[ _-]?(key|token)\b.{{0,40}}\b({_BAD}|not (valid|found|provided|set))\b"
    rf"|\b({_BAD}|no|bad) (\w+ )?(api|access|auth|secret)[ _-]?(key|token)\b"
    r"|\baccount\b.{0,20}\b(is|was|has been)\b.{0,20}"
    r"\b(suspended|disabled|deactivated|flagged|terminated|blocked|banned)"
)
RIGHTS_WORDS = (  # words of a 403 or 404 that is not moderation
    r"\bkey\b|\btoken\b|bearer|authenticat|authori[sz]|credential|permission|\baccount\b|\baccess\b|subscription"
)
_CONTENT = r"(input|prompt|request|content|message|image|audio|video|text|query)s?"
MODERATED_WORDS = (
    r"moderat|content[ _-]?(policy|filter|management)|safety|inappropriate|(usage|acceptable use) polic"
    rf"|\b{_CONTENT}\b.{{0,60}}\b(flagged|violat\w+|blocked|filtered|unsafe|harmful|prohibited|sensitive)\b"
    rf"|\b(flagged|blocked|unsafe|harmful|prohibited|sensitive)\b.{{0,20}}\b{_CONTENT}\b"
)
MODEL_WORDS = (
    r"\bmodel\b.{0,80}\b(does ?n[o']t exist|not exist|not found|not available)\b|\b(unknown|invalid|no such) model\b"
    r"|not a valid model|access to (the )?model"
)
NO_SUCH_PLACE = r"^\W*(404\W*)?(not found|page not found|no route|invalid url|unknown url)\b|404 (page )?not found"
#: Words of a refusal without a reason: the replies to other questions show whether it is about the key or this one.
NO_REASON = r"^\W*(error|40[35]|410|forbidden|access denied|method not allowed|gone|it gives no reason|\W)+$"
TOO_LARGE_WORDS = r"too (large|long|big)\b|(context|maximum) (length|window|size)|maximum context|request entity"
#: Words by which a field is refused for its value, not for its name.
VALUE_WORDS = (
    r"too (large|high|big|long|small)|at (most|least)|exceed|maximum|(less|greater|smaller|larger) than|context"
)

BODY_STATUSES = (400, 413, 422)
UNCLEAR_STATUSES = (403, 404, 405, 410)


class Kind(enum.Enum):
    """The subject of a refusal. The first three concern all questions, the next three this one."""

    MONEY = "money"
    KEY = "key"
    ADDRESS = "address"
    MODERATED = "moderated"
    TOO_LARGE = "too_large"
    BAD_REQUEST = "bad_request"
    RATE_LIMIT = "rate_limit"
    SERVER_ERROR = "server_error"
    UNCLEAR = "unclear"  # the key, the address or the question: the replies to others decide


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A response with status 4xx or 5xx.

    Attributes:
        status: status of HTTP.
        words: the endpoint's message, on one line without control characters; never empty.
        codes: codes and types in the body, as letters and digits in lower case.
    """

    status: int
    words: str
    codes: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """The subject, by the codes, then the words, then the status."""
        if self.status == 402 or self._has(MONEY_CODE, MONEY_WORDS):
            return Kind.MONEY
        if self.status != 429 and self._has_code(MODERATED_CODE):
            return Kind.MODERATED
        if self.status == 429:
            return Kind.RATE_LIMIT
        if self.status >= 500 or self.status in (408, 409, 425):
            return Kind.SERVER_ERROR
        if self._has(KEY_CODE, KEY_WORDS):
            return Kind.KEY
        return self._kind_of_content()

    def _kind_of_content(self) -> Kind:
        if self._has_code(MODEL_CODE):
            return Kind.ADDRESS
        if self.status == 413 or (self.status in BODY_STATUSES and self._has(TOO_LARGE_CODE, TOO_LARGE_WORDS)):
            return Kind.TOO_LARGE
        if self.status == 451 or self._says(MODERATED_WORDS):
            return Kind.MODERATED
        if self.status in (401, 407):
            return Kind.KEY
        if self.status == 404 and self._says(f"{MODEL_WORDS}|{NO_SUCH_PLACE}"):
            return Kind.ADDRESS
        if self.status in (403, 404) and self._has(RIGHTS_CODE, f"{MODEL_WORDS}|{RIGHTS_WORDS}"):
            return Kind.KEY if self.status == 403 else Kind.ADDRESS
        is_bare = self.status in UNCLEAR_STATUSES and self._says(NO_REASON)
        if is_bare or self.status < 400 or self._says(MODEL_WORDS):
            return Kind.UNCLEAR
        return Kind.BAD_REQUEST

    def knows_no(self, field: str) -> bool:
        """Return whether the request was refused because it has this field, whatever its value."""
        names_it = re.search(rf"(?<!\w){re.escape(field)}(?!\w)", self.words) is not None
        return names_it and not self._says(VALUE_WORDS)

    def _has(self, codes: str, words: str) -> bool:
        return self._has_code(codes) or (self.status < 500 and self._says(words))

    def _has_code(self, pattern: str) -> bool:
        return any(re.search(pattern, code) for code in self.codes)

    def _says(self, pattern: str) -> bool:
        return re.search(pattern, self.words, re.IGNORECASE) is not None


def read_refusal(status: int, body: str) -> Refusal:
    """Read the body of a refusal: JSON in any of the known forms, HTML or text."""
    try:
        return refusal_of(status, json.loads(body))
    except (ValueError, RecursionError):
        said = re.sub(r"<(style|script)\b.*?</\1>|<[^<>]*>", " ", body[: 4 * LONGEST_WORDS], flags=re.S | re.I)
    return refusal_of(status, said)


def refusal_of(status: int, said: object) -> Refusal:
    """Read a refusal whose body has been parsed; see `read_refusal`."""
    words = list(itertools.islice(dict.fromkeys(_words(said)), MOST_WORDS))
    if not words and said:
        words = [json.dumps(said, ensure_ascii=False, default=str)]
    text = one_line("; ".join(word[:LONGEST_WORDS] for word in words))[:LONGEST_WORDS]
    return Refusal(status, text or "it gives no reason", tuple(dict.fromkeys(_codes(said))))


def one_line(text: str) -> str:
    """Make text from outside safe for a terminal and a log: no control characters, single blanks."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def _words(said: object, depth: int = 0) -> Iterator[str]:
    if depth > DEEPEST:
        return
    if isinstance(said, str) and said.strip():
        yield said.strip()
    elif isinstance(said, list):
        for part in said:
            yield from _words(part, depth + 1)
    elif isinstance(said, dict):
        place = said.get("loc")
        name = ".".join(str(part) for part in place) if isinstance(place, list) else said.get("param")
        for words in itertools.chain.from_iterable(_words(said.get(field), depth + 1) for field in WORD_FIELDS):
            yield f"{name}: {words}" if isinstance(name, str) and name not in words else words


def _codes(said: object, depth: int = 0) -> Iterator[str]:
    if depth > DEEPEST:
        return
    for part in said if isinstance(said, list) else ():
        yield from _codes(part, depth + 1)
    for name, value in said.items() if isinstance(said, dict) else ():
        if name in CODE_FIELDS and isinstance(value, str):
            yield re.sub(r"[^a-z0-9]", "", value.lower())
        elif name not in QUOTING_FIELDS:
            yield from _codes(value, depth + 1)
