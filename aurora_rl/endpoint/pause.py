"""The pauses between attempts, which all questions to an endpoint share after a 429."""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Mapping

from aurora_rl.endpoint.arguments import EndpointArguments
from aurora_rl.endpoint.errors import BadReplyError


class SharedPause:
    """When the next attempt may be made: for a question after its own failure, for all questions after a 429.

    Args:
        args: the pauses' lengths.
        rng: of their jitter, so that questions do not come back all at once.
    """

    def __init__(self, args: EndpointArguments, rng: random.Random) -> None:
        self._args, self._rng = args, rng
        self._until = 0.0  # on the monotonic clock
        self._bursts = 0  # of 429s, since the last good reply

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
        if now >= self._until:  # questions that were under way when the pause began are of the same burst
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
