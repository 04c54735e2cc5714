"""Pauses between attempts, which all questions to an endpoint share after a 429."""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Mapping

from aurora_rl.endpoint.arguments import EndpointArguments
from aurora_rl.endpoint.errors import BadReplyError


class SharedPause:
    """Waits before the next attempt: of one question after its own failure, of all questions after a 429.

    Args:
        args: arguments with the pauses' lengths.
        rng: generator of their jitter, so that questions are not retried all at once.
    """

    def __init__(self, args: EndpointArguments, rng: random.Random) -> None:
        self._args, self._rng = args, rng
        self._until = 0.0  # time of the monotonic clock
        self._bursts = 0  # bursts of 429s since the last valid reply

    async def over(self) -> None:
        """Wait until nobody need wait, and then a little, each question for another time."""
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
        if now >= self._until:  # questions sent before the pause began belong to the same burst
            self._bursts += 1
        wait_s = self._backoff(self._bursts) if error.wait_s is None else error.wait_s
        self._until = max(self._until, now + wait_s)

    def reset(self) -> None:
        """Let the next 429 start with a short pause again, as the endpoint has answered."""
        self._bursts = 0

    def _backoff(self, failures: int) -> float:
        """Draw a pause between half and all of `backoff_s` x 2^(failures - 1), in seconds."""
        longest = min(self._args.max_backoff_s, self._args.backoff_s * 2.0 ** min(failures - 1, 30))
        return longest * self._rng.uniform(0.5, 1.0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a response's `Retry-After` asks for, as a number or a date; None if it has none."""
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
