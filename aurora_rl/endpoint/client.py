"""An OpenAI-compatible chat endpoint that is asked again until it answers well, within bounds.

What goes wrong on the way (a status of 429 or 5xx, a timeout, a connection that breaks, half a body, a reply that is
not what was asked for) is repeated with growing pauses. After a 429 nobody asks until the pause is over. What no
repetition mends fails the row where it concerns the row (moderation, size), and ends the run where it concerns all of
them (a wrong key, no such model, no money left): `aurora_rl.endpoint.refusals` tells them apart.

The key comes from the environment alone. It is in no text that leaves this module: errors of the `openai` package are
taken apart here and never passed on, and the key is cut out of what the endpoint says.
"""

from __future__ import annotations

import asyncio
import dataclasses
import email.utils
import html
import json
import logging
import os
import random
import re
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import openai
from openai.types.chat import ChatCompletion

from aurora_rl.endpoint.addresses import check_address
from aurora_rl.endpoint.refusals import Kind, Refusal, one_line, read_refusal, refusal_of

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

LONGEST_RETRY_AFTER_S = 3600.0
NO_KEY = "EMPTY"  # what local servers are sent, who ask for none
DETAIL_LENGTH = 300
SHORTEST_SECRET = 8  # characters; shorter keys ("EMPTY", "x") are placeholders, and words of ordinary replies
KEY_BEGINNING = 12  # characters of a long key by which one that is quoted in part is found
#: Log every request with its address, or more, at levels below warnings.
CHATTY_LOGGERS = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")
RESPONSE_FORMATS = ("json_schema", "json_object", "none")
MAX_TOKENS_FIELDS = ("max_completion_tokens", "max_tokens")
HINTS = {"response_format": "try --response_format json_object or none"} | {
    field: "see --max_tokens_field" for field in MAX_TOKENS_FIELDS
}


@dataclasses.dataclass
class EndpointArguments:
    """Which model is asked, and how hard.

    Attributes:
        model: name of the model at the endpoint.
        base_url: address up to and with `/v1`; by default OpenAI's, or what OPENAI_BASE_URL says.
        api_key_env: environment variable with the key.
        response_format: how the form of a reply is asked for beside the words: "json_schema", "json_object" for
            endpoints that only know JSON, "none" for those that know neither.
        max_tokens: largest number of tokens of a reply, reasoning included.
        max_tokens_field: name of that in a request: "max_completion_tokens" or, at Mistral and several local servers,
            "max_tokens"; by default the first, and the second once the endpoint has refused the first.
        temperature: sampling temperature; None leaves it to the endpoint.
        extra_body: further fields of each request as JSON, such as `{"top_k": 20}`.
        concurrency: rows that are asked about at the same time.
        timeout_s: seconds that the endpoint may take for one reply.
        max_attempts: largest number of requests for one row, without those refused by 429.
        max_rate_limits: largest number of requests for one row that are refused by 429.
        backoff_s: first pause after a failure, in seconds; it doubles with each.
        max_backoff_s: longest pause that is not the endpoint's own wish.
        input_price: price of a million prompt tokens.
        output_price: price of a million completion tokens.
    """

    model: str | None = dataclasses.field(default=None, metadata={"help": "Name of the model at the endpoint."})
    base_url: str | None = dataclasses.field(
        default=None, metadata={"help": "Address of the endpoint, such as http://localhost:8000/v1."}
    )
    api_key_env: str = dataclasses.field(
        default="OPENAI_API_KEY", metadata={"help": "Environment variable that holds the endpoint's key."}
    )
    response_format: str = dataclasses.field(
        default="json_schema",
        metadata={"help": f"How the form of a reply is asked for: {', '.join(RESPONSE_FORMATS)}."},
    )
    max_tokens: int = dataclasses.field(
        default=2048, metadata={"help": "Largest number of tokens of a reply, reasoning included."}
    )
    max_tokens_field: str | None = dataclasses.field(
        default=None,
        metadata={
            "help": f"Field of a request for max_tokens: {' or '.join(MAX_TOKENS_FIELDS)}; by default what works."
        },
    )
    temperature: float | None = dataclasses.field(
        default=None, metadata={"help": "Sampling temperature; by default the endpoint's own."}
    )
    extra_body: str | None = dataclasses.field(
        default=None, metadata={"help": "Further fields of each request, as JSON."}
    )
    concurrency: int = dataclasses.field(default=16, metadata={"help": "Number of rows asked about at the same time."})
    timeout_s: float = dataclasses.field(
        default=300.0, metadata={"help": "Seconds that the endpoint may take for one reply."}
    )
    max_attempts: int = dataclasses.field(
        default=6, metadata={"help": "Largest number of requests for one row, without those refused by 429."}
    )
    max_rate_limits: int = dataclasses.field(
        default=50, metadata={"help": "Largest number of requests for one row that are refused by 429."}
    )
    backoff_s: float = dataclasses.field(
        default=1.0, metadata={"help": "First pause after a failed request, in seconds."}
    )
    max_backoff_s: float = dataclasses.field(
        default=60.0, metadata={"help": "Longest pause between two requests for a row, in seconds."}
    )
    input_price: float | None = dataclasses.field(default=None, metadata={"help": "Price of a million prompt tokens."})
    output_price: float | None = dataclasses.field(
        default=None, metadata={"help": "Price of a million completion tokens."}
    )

    def __post_init__(self) -> None:
        if self.response_format not in RESPONSE_FORMATS:
            raise ValueError(f"response_format is {self.response_format!r}: choose from {', '.join(RESPONSE_FORMATS)}")
        if self.max_tokens_field not in (None, *MAX_TOKENS_FIELDS):
            raise ValueError(
                f"max_tokens_field is {self.max_tokens_field!r}: choose from {', '.join(MAX_TOKENS_FIELDS)}"
            )
        for name in ("max_tokens", "concurrency", "max_attempts", "max_rate_limits", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0")
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("only one of input_price and output_price is given: a cost needs both")
        self.extra_fields()
        check_address(self.base_url, name="base_url")
        if self.base_url is None:  # the client reads it there
            check_address(os.environ.get("OPENAI_BASE_URL"), name="OPENAI_BASE_URL")

    def extra_fields(self) -> dict[str, Any]:
        """`extra_body` read; a `ValueError` where it is no JSON object."""
        fields = json.loads(self.extra_body) if isinstance(self.extra_body, str) else self.extra_body or {}
        if not isinstance(fields, dict):
            raise ValueError(f"extra_body is {self.extra_body!r}: expected a JSON object")
        return fields

    def cost(self, usage: Usage) -> float | None:
        """What tokens cost, in the currency of the prices; None where there are none."""
        if self.input_price is None or self.output_price is None:
            return None
        return (usage.prompt_tokens * self.input_price + usage.completion_tokens * self.output_price) / 1e6


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens as the endpoint counted them, of one or more requests.

    Attributes:
        requests: that came back with a reply, be it good or not.
        prompt_tokens: read.
        completion_tokens: written.
        uncounted: requests whose reply told no numbers.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


class EndpointRefusedError(RuntimeError):
    """No row will be answered: the key, the address or the model is wrong, or the money is spent."""


class BadReplyError(ValueError):
    """One attempt that led to nothing.

    Attributes:
        reason: a word to count by, such as "timeout" or "wrong_category".
        repeatable: whether another attempt may do better.
        wait_s: how long the endpoint asks to wait before it, in seconds.
    """

    def __init__(self, reason: str, detail: str, *, repeatable: bool = True, wait_s: float | None = None) -> None:
        super().__init__(detail)
        self.reason, self.repeatable, self.wait_s = reason, repeatable, wait_s


class RowFailedError(Exception):
    """A row that stays without an answer in this run; `reason` is that of the last attempt."""

    def __init__(self, reason: str, detail: str, *, attempts: int = 0) -> None:
        super().__init__(detail)
        self.reason, self.attempts = reason, attempts


class ChatEndpoint:
    """Asks one model, for many rows at a time.

    Args:
        args: how it is reached.
        seed: of the pauses' jitter.

    Attributes:
        failed_attempts: how many attempts failed, by reason.
        has_answered: whether any row has had a reply, good or not.

    Raises:
        ValueError: if no model is named, or the key is not one.
    """

    def __init__(self, args: EndpointArguments, *, seed: int = 0) -> None:
        if args.model is None:
            raise ValueError("no model is named: say by --model which one the endpoint shall answer with")
        self.args = args
        self.failed_attempts: Counter[str] = Counter()
        self.has_answered = False
        self._asking = self._undecided = 0  # rows under way, and those of them that wait for what the others get
        self._changed = asyncio.Condition()
        self._max_tokens_field = args.max_tokens_field or MAX_TOKENS_FIELDS[0]
        self._key = read_api_key(args.api_key_env)
        self._pause = SharedPause(args, random.Random(seed))
        for name in CHATTY_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = openai.AsyncOpenAI(
            api_key=self._key or NO_KEY, base_url=args.base_url, max_retries=0, timeout=args.timeout_s
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def ask(
        self,
        messages: list[dict[str, Any]],
        *,
        schema: Mapping[str, Any],
        read: Callable[[str], Result],
        on_usage: Callable[[Usage], None],
    ) -> Result:
        """Ask until there is a good reply.

        Args:
            messages: the conversation.
            schema: JSON schema that the reply shall follow.
            read: makes something of the reply's text; a `BadReplyError` from it is another failed attempt.
            on_usage: is told the tokens of each reply, good or not.

        Raises:
            RowFailedError: if there is none within the bounds.
            EndpointRefusedError: if there will be none for any row.
        """
        self._asking += 1
        try:
            return await self._ask(messages, schema, read, on_usage)
        finally:
            self._asking -= 1
            await self._tell_undecided()

    async def _ask(
        self,
        messages: list[dict[str, Any]],
        schema: Mapping[str, Any],
        read: Callable[[str], Result],
        on_usage: Callable[[Usage], None],
    ) -> Result:
        attempts = rate_limits = 0
        while True:
            await self._pause.over()
            try:
                result = read(await self._request(self._body(messages, schema), on_usage))
            except BadReplyError as error:
                self.failed_attempts[error.reason] += 1
                is_rate_limit = error.reason == "rate_limit"
                rate_limits += is_rate_limit
                attempts += not is_rate_limit
                is_last = attempts >= self.args.max_attempts or rate_limits >= self.args.max_rate_limits
                if is_last or not error.repeatable:
                    detail = self._clean(str(error))
                    raise RowFailedError(error.reason, detail, attempts=attempts + rate_limits) from None
                await self._pause.after(error, attempts)
            else:
                self._pause.reset()
                return result

    def _body(self, messages: list[dict[str, Any]], schema: Mapping[str, Any]) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.args.model, "messages": messages}
        extra_fields = self.args.extra_fields()
        if extra_fields.keys().isdisjoint(MAX_TOKENS_FIELDS):
            body[self._max_tokens_field] = self.args.max_tokens
        if self.args.temperature is not None:
            body["temperature"] = self.args.temperature
        if self.args.response_format == "json_schema":
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "chain", "strict": True, "schema": schema},
            }
        elif self.args.response_format == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body | {"extra_body": extra_fields}

    async def _request(self, body: Mapping[str, Any], on_usage: Callable[[Usage], None]) -> str:
        """Text of one reply."""
        completion = await self._completion(body)
        usage = _read_usage(completion)
        if usage is not None:
            on_usage(usage)
        if (refusal := _refusal_inside(completion)) is not None:
            raise await self._judge(refusal, wait_s=None)
        if usage is not None:
            self.has_answered = True
            await self._tell_undecided()
        return self._without_key(_read_text(completion), shortest=SHORTEST_SECRET)

    async def _completion(self, body: Mapping[str, Any]) -> object:
        """What the endpoint sends for one request; asked again at once where it knows the other field only."""
        try:
            async with asyncio.timeout(self.args.timeout_s):
                return await self._client.chat.completions.create(**body)
        except (TimeoutError, openai.APITimeoutError):
            raise BadReplyError("timeout", f"no reply within {self.args.timeout_s:g} s") from None
        except openai.APIStatusError as error:
            refusal, headers = read_refusal(error.status_code, error.response.text), error.response.headers
        except openai.APIConnectionError as error:
            raise BadReplyError("connection", _innermost(error)) from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
            # The package reads bodies with json.loads and trusts their form.
            raise BadReplyError("broken_body", f"{type(error).__name__}: {error}") from None
        if self._knows_the_other_field(body, refusal):
            return await self._completion(_with_max_tokens(body))
        raise await self._judge(refusal, wait_s=retry_after(headers))

    def _knows_the_other_field(self, body: Mapping[str, Any], refusal: Refusal) -> bool:
        """Whether to ask by `max_tokens`, which is remembered: some endpoints refuse the newer name."""
        tried, other = MAX_TOKENS_FIELDS
        is_free = self.args.max_tokens_field is None and tried in body
        if not is_free or refusal.kind is not Kind.BAD_REQUEST or not refusal.knows_no(tried):
            return False
        if self._max_tokens_field != other:
            logger.info("The endpoint does not know %s: it is asked by %s from now on.", tried, other)
        self._max_tokens_field = other
        return True

    async def _judge(self, refusal: Refusal, *, wait_s: float | None) -> Exception:
        """What a refusal means: the end of the run, of the row, or of the attempt."""
        kind, said = refusal.kind, self._clean(f"status {refusal.status}: {refusal.words}")
        if wait_s is not None and wait_s > LONGEST_RETRY_AFTER_S:
            return EndpointRefusedError(f"the endpoint asks to wait for {wait_s:.0f} s ({said}): run again after that")
        if kind in (Kind.MONEY, Kind.KEY, Kind.ADDRESS) or (kind is Kind.UNCLEAR and await self._nobody_is_answered()):
            return EndpointRefusedError(f"the endpoint refuses ({said}). {self._what_to_do(refusal)}")
        if kind in (Kind.RATE_LIMIT, Kind.SERVER_ERROR):
            return BadReplyError(kind.value, said, wait_s=wait_s)
        hints = [hint for field, hint in HINTS.items() if field in refusal.words]
        reason = "bad_request" if kind is Kind.UNCLEAR else kind.value
        return BadReplyError(reason, "; ".join([said, *hints[:1]]), repeatable=False)

    async def _nobody_is_answered(self) -> bool:
        """Whether a refusal that may concern the row concerns all rows.

        It is known once another row under way has a reply, or none is left that may still get one.
        """
        self._undecided += 1
        try:
            await self._tell_undecided()
            async with self._changed:
                await self._changed.wait_for(lambda: self.has_answered or self._undecided >= self._asking)
        finally:
            self._undecided -= 1
        return not self.has_answered

    async def _tell_undecided(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _what_to_do(self, refusal: Refusal) -> str:
        if refusal.kind is Kind.MONEY:
            return "The account has no money or quota left."
        if refusal.kind is Kind.ADDRESS or (refusal.kind is Kind.UNCLEAR and refusal.status != 403):
            return f"Check --base_url, which ends in /v1, and --model, which is {self.args.model!r}."
        if self._key is None:
            return "There is no key: put it into the environment variable that --api_key_env names."
        return f"Check the key in the environment variable {self.args.api_key_env}, and what it may do."

    def _clean(self, text: str) -> str:
        """An error's text, which may quote the endpoint at length: without the key, and no longer than need be."""
        text = one_line(self._without_key(text))
        return text if len(text) <= DETAIL_LENGTH else text[:DETAIL_LENGTH] + "..."

    def _without_key(self, text: str, *, shortest: int = 1) -> str:
        """Text without the key, however it is written, or a beginning of it."""
        if self._key is None or len(self._key) < shortest:
            return text
        for written in (
            self._key,
            json.dumps(self._key)[1:-1],
            html.escape(self._key),
            urllib.parse.quote(self._key, ""),
        ):
            text = text.replace(written, "[key]")
        if len(self._key) <= KEY_BEGINNING:
            return text
        return re.sub(re.escape(self._key[:KEY_BEGINNING]) + r"[^\s\"'<>,;]*", "[key]", text)


class SharedPause:
    """When the next attempt may be made: by a row after its own failure, and by all rows after a 429.

    Args:
        args: the pauses' lengths.
        rng: of their jitter, so that rows do not come back all at once.
    """

    def __init__(self, args: EndpointArguments, rng: random.Random) -> None:
        self._args, self._rng = args, rng
        self._until = 0.0  # on the monotonic clock
        self._bursts = 0  # of 429s, since the last good reply

    async def over(self) -> None:
        """Wait until nobody need wait, and then a little, each row for another time."""
        waited = False
        while (left := self._until - time.monotonic()) > 0:
            waited = True
            await asyncio.sleep(left)
        if waited:
            await asyncio.sleep(self._rng.uniform(0, self._args.backoff_s))

    async def after(self, error: BadReplyError, attempts: int) -> None:
        """Wait after a failed attempt; after a 429, make everybody wait."""
        if error.reason != "rate_limit":
            await asyncio.sleep(max(self._backoff(attempts), error.wait_s or 0.0))
            return
        now = time.monotonic()
        if now >= self._until:  # rows that were under way when the pause began belong to the same burst
            self._bursts += 1
        wait_s = self._backoff(self._bursts) if error.wait_s is None else error.wait_s
        self._until = max(self._until, now + wait_s)

    def reset(self) -> None:
        """The endpoint answers: the next 429 starts with a short pause again."""
        self._bursts = 0

    def _backoff(self, failures: int) -> float:
        """Between half and all of `backoff_s` x 2^(failures - 1), in seconds."""
        longest = min(self._args.max_backoff_s, self._args.backoff_s * 2.0 ** min(failures - 1, 30))
        return longest * self._rng.uniform(0.5, 1.0)


def read_api_key(variable: str) -> str | None:
    """The key in an environment variable; None where it is empty or not set.

    Raises:
        ValueError: if the variable's name or the key cannot be one. It shows neither: each may be the key.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        raise ValueError("api_key_env is no name of an environment variable: put the key into one, and give its name")
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError("the key in the environment holds blanks or characters that no key has: set it again")
    return key or None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a response's `Retry-After` asks to wait, given as a number or a date; None where it does not."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def _read_usage(completion: object) -> Usage | None:
    """Tokens of a reply; None where it is no completion, which costs nothing."""
    if not isinstance(completion, ChatCompletion):
        return None
    usage = getattr(completion, "usage", None)
    prompt_tokens, completion_tokens = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    if isinstance(prompt_tokens, int) and isinstance(completion_tokens, int):
        return Usage(1, prompt_tokens, completion_tokens)
    return Usage(requests=1, uncounted=1)


def _with_max_tokens(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request with the older name of its field for the longest reply."""
    tried, other = MAX_TOKENS_FIELDS
    return {other if name == tried else name: value for name, value in body.items()}


def _refusal_inside(completion: object) -> Refusal | None:
    """The error that proxies send with a status of 200, instead of a reply or inside it; None where there is none."""
    choices = getattr(completion, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    error = getattr(completion, "error", None) or getattr(choice, "error", None)
    if not error:
        return None
    status = error.get("code") if isinstance(error, dict) else None
    return refusal_of(status if isinstance(status, int) and 400 <= status < 600 else 500, error)


def _read_text(completion: object) -> str:
    """What the model wrote; the package builds its objects without checking them."""
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
        raise BadReplyError("cut_off", "the reply was cut off: raise --max_tokens")
    if not isinstance(text, str) or not text.strip():
        said = f": {completion}" if isinstance(completion, str) else ""  # a page instead of JSON
        raise BadReplyError("broken_body", f"the response holds no text of a model{said}")
    return text


def _join_parts(content: object) -> tuple[object, str]:
    """Text and refusal of a message's content, which some endpoints send as a list of parts; thinking is left out."""
    if not isinstance(content, list):
        return content, ""
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    told = [part for part in parts if isinstance(part, dict)]
    texts = [part.get("text") for part in told if part.get("type", "text") in ("text", "output_text")]
    refusals = [str(part.get("refusal") or "") for part in told if part.get("type") == "refusal"]
    return "".join(text for text in texts if isinstance(text, str)), " ".join(refusals).strip()
