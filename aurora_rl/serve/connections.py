"""Visitors who open a connection and then say nothing: they are waited for some seconds, not for ever."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.types import Message, Receive
from uvicorn.protocols.http.auto import AutoHTTPProtocol

#: Seconds in which the head of a request must be there, counted from the connection or from its first byte.
HEAD_SECONDS = 30.0
#: Seconds without a further byte of a body after which it is given up.
IDLE_SECONDS = 30.0
#: Bytes a second that a body must come with on the whole, so that one byte at a time is no way around `IDLE_SECONDS`.
SLOWEST_RATE = 10_000


class ImpatientProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's, which itself waits for ever for the rest of a request's head."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A visitor is there."""
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        """Some bytes are there, of one request or more."""
        super().data_received(data)
        if not self._waits_for_head():
            self._stop()
        elif self._deadline is None:
            self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        """The visitor is gone."""
        self._stop()
        super().connection_lost(exc)

    def _waits_for_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _start(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self._waits_for_head() and not self.transport.is_closing():
            self.transport.close()


class BodyDeadline:
    """Receives a request's body (ASGI) and tells the application that the visitor is gone where it stops coming.

    Args:
        receive: the server's.
        length: bytes that the request says it has.

    Attributes:
        is_over: whether the body was given up.
    """

    def __init__(self, receive: Receive, length: int) -> None:
        self._receive = receive
        self._is_whole = False
        self._end = time.monotonic() + IDLE_SECONDS + length / SLOWEST_RATE
        self.is_over = False

    async def __call__(self) -> Message:
        """The next part of the body."""
        if self._is_whole:
            return await self._receive()
        if self.is_over:
            return {"type": "http.disconnect"}
        try:
            left = self._end - time.monotonic()
            message = await asyncio.wait_for(self._receive(), max(min(IDLE_SECONDS, left), 0.0))
        except TimeoutError:
            self.is_over = True
            return {"type": "http.disconnect"}
        self._is_whole = not message.get("more_body", False)
        return message
