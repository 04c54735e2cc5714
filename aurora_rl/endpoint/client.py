"""An OpenAI-compatible chat endpoint, whose questions are retried within limits until the answer is valid.

Failures that may pass (a status of 429 or 5xx, a timeout, a broken connection, half a body, an invalid reply) are
retried with growing pauses. Other failures leave one question without an answer if they concern this question
(moderation, size), and end all questions if they concern all (a wrong key, no such model, no money left): `refusals`
distinguishes these.

No text that leaves this module holds the key: errors of the `openai` package are replaced by ours, and the key is
removed from the endpoint's messages.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from aurora_rl.endpoint.api_key import NO_KEY, SHORTEST_SECRET, ApiKey
from aurora_rl.endpoint.arguments import MAX_TOKENS_FIELDS, EndpointArguments
from aurora_rl.endpoint.errors import BadReplyError, EndpointRefusedError, NoAnswerError
from aurora_rl.endpoint.pause import SharedPause, retry_after
from aurora_rl.endpoint.refusals import Kind, Refusal, one_line, read_refusal
from aurora_rl.endpoint.replies import Usage, read_text, read_usage, refusal_inside
from aurora_rl.endpoint.request import request_body, with_max_tokens
from aurora_rl.endpoint.under_way import QuestionsUnderWay

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

LONGEST_RETRY_AFTER_S = 3600.0
DETAIL_LENGTH = 300
#: Loggers of libraries that log every request with its address, or more, at levels below warnings.
CHATTY_LOGGERS = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")
HINTS = {"response_format": "try response_format json_object or none"} | {
    field: "see max_tokens_field" for field in MAX_TOKENS_FIELDS
}


class ChatEndpoint:
    """Asks one model many questions at a time.

    Args:
        args: address, limits and prices.
        seed: seed of the pauses' jitter.

    Attributes:
        failed_attempts: number of failed attempts by reason.

    Raises:
        ValueError: if no model is named, the key is invalid, or the package `openai` is not installed.
    """

    def __init__(self, args: EndpointArguments, *, seed: int = 0) -> None:
        if args.model is None:
            raise ValueError("no model is named: say by `model` which one the endpoint shall answer with")
        self.args = args
        self.failed_attempts: Counter[str] = Counter()
        self._under_way = QuestionsUnderWay()
        self._knows_max_tokens_only = False
        self._key = ApiKey.read(args.api_key_env)
        self._pause = SharedPause(args, random.Random(seed))
        for name in CHATTY_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            import openai
        except ModuleNotFoundError as error:
            raise ValueError("an endpoint is asked by the package openai: pip install 'aurora-rl[cot]'") from error
        self._client = openai.AsyncOpenAI(
            api_key=self._key.value or NO_KEY, base_url=args.base_url, max_retries=0, timeout=args.timeout_s
        )

    @property
    def has_answered(self) -> bool:
        """Whether any question has had a reply, valid or not."""
        return self._under_way.has_answered

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def ask(
        self,
        messages: list[dict[str, Any]],
        *,
        read: Callable[[str], Result],
        schema: Mapping[str, Any] | None = None,
        schema_name: str = "reply",
        on_usage: Callable[[Usage], None] = lambda usage: None,
    ) -> Result:
        """Ask until there is a good reply.

        Args:
            messages: the conversation, as OpenAI's chat protocol has it.
            read: makes something of the reply's text; a `BadReplyError` from it is another failed attempt.
            schema: JSON schema that the reply shall follow; None for a reply in any form.
            schema_name: what the endpoint is told that the schema is of.
            on_usage: is told the tokens of each reply, good or not.

        Raises:
            NoAnswerError: if there is none within the bounds.
            EndpointRefusedError: if there will be none for any question.
        """
        body = request_body(self.args, messages, schema, schema_name)
        async with self._under_way.one_more():
            return await self._ask(body, read, on_usage)

    async def _ask(
        self, body: Mapping[str, Any], read: Callable[[str], Result], on_usage: Callable[[Usage], None]
    ) -> Result:
        attempts = rate_limits = 0
        while True:
            await self._pause.over()
            try:
                result = read(await self._request(body, on_usage))
            except BadReplyError as error:
                self.failed_attempts[error.reason] += 1
                is_rate_limit = error.reason == "rate_limit"
                rate_limits += is_rate_limit
                attempts += not is_rate_limit
                is_last = attempts >= self.args.max_attempts or rate_limits >= self.args.max_rate_limits
                if is_last or not error.repeatable:
                    detail = self._clean(str(error))
                    raise NoAnswerError(error.reason, detail, attempts=attempts + rate_limits) from None
                await self._pause.after(error, attempts)
            else:
                self._pause.reset()
                return result

    async def _request(self, body: Mapping[str, Any], on_usage: Callable[[Usage], None]) -> str:
        """Text of one reply."""
        completion = await self._completion(body)
        usage = read_usage(completion)
        if usage is not None:
            on_usage(usage)
        if (refusal := refusal_inside(completion)) is not None:
            raise await self._judge(refusal, wait_s=None)
        if usage is not None:
            await self._under_way.note_answer()
        return self._key.cut_out(read_text(completion), shortest=SHORTEST_SECRET)

    async def _completion(self, body: Mapping[str, Any]) -> object:
        """What the endpoint sends for one request; asked again at once where it knows `max_tokens` only."""
        import openai

        sent = with_max_tokens(body) if self._knows_max_tokens_only else body
        try:
            async with asyncio.timeout(self.args.timeout_s):
                return await self._client.chat.completions.create(**sent)
        except (TimeoutError, openai.APITimeoutError):
            raise BadReplyError("timeout", f"no reply within {self.args.timeout_s:g} s") from None
        except openai.APIStatusError as error:
            refusal, headers = read_refusal(error.status_code, error.response.text), error.response.headers
        except openai.APIConnectionError as error:
            raise BadReplyError("connection", _innermost(error)) from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
            # The package parses bodies with json.loads and does not check their form.
            raise BadReplyError("broken_body", f"{type(error).__name__}: {error}") from None
        if self._shows_the_older_field(sent, refusal):
            return await self._completion(body)
        raise await self._judge(refusal, wait_s=retry_after(headers))

    def _shows_the_older_field(self, sent: Mapping[str, Any], refusal: Refusal) -> bool:
        """Return whether to retry with `max_tokens`, and remember it: some endpoints refuse the newer name."""
        tried, other = MAX_TOKENS_FIELDS
        is_free = self.args.max_tokens_field is None and tried in sent
        if not is_free or refusal.kind is not Kind.BAD_REQUEST or not refusal.knows_no(tried):
            return False
        if not self._knows_max_tokens_only:
            logger.info("The endpoint does not know %s: it is asked by %s from now on.", tried, other)
        self._knows_max_tokens_only = True
        return True

    async def _judge(self, refusal: Refusal, *, wait_s: float | None) -> Exception:
        """What a refusal means: no answer to any question, to this one, or to this attempt."""
        kind, said = refusal.kind, self._clean(f"status {refusal.status}: {refusal.words}")
        if wait_s is not None and wait_s > LONGEST_RETRY_AFTER_S:
            return EndpointRefusedError(f"the endpoint asks to wait for {wait_s:.0f} s ({said}): run again after that")
        concerns_all = kind in (Kind.MONEY, Kind.KEY, Kind.ADDRESS)
        if concerns_all or (kind is Kind.UNCLEAR and await self._under_way.nobody_is_answered()):
            return EndpointRefusedError(f"the endpoint refuses ({said}). {self._what_to_do(refusal)}")
        if kind in (Kind.RATE_LIMIT, Kind.SERVER_ERROR):
            return BadReplyError(kind.value, said, wait_s=wait_s)
        hints = [hint for field, hint in HINTS.items() if field in refusal.words]
        reason = "bad_request" if kind is Kind.UNCLEAR else kind.value
        return BadReplyError(reason, "; ".join([said, *hints[:1]]), repeatable=False)

    def _what_to_do(self, refusal: Refusal) -> str:
        if refusal.kind is Kind.MONEY:
            return "The account has no money or quota left."
        if refusal.kind is Kind.ADDRESS or (refusal.kind is Kind.UNCLEAR and refusal.status != 403):
            return f"Check base_url, which ends in /v1, and model, which is {self.args.model!r}."
        if self._key.value is None:
            return "There is no key: put it into the environment variable that api_key_env names."
        return f"Check the key in the environment variable {self.args.api_key_env}, and what it may do."

    def _clean(self, text: str) -> str:
        """Remove the key from an error's text, which may quote the endpoint, and shorten it."""
        text = one_line(self._key.cut_out(text))
        return text if len(text) <= DETAIL_LENGTH else text[:DETAIL_LENGTH] + "..."


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"
