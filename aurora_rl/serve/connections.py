"""Time limits for visitors who open a connection and stop sending in the middle of a request."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.types import Message, Receive
from uvicorn.protocols.http.auto import AutoHTTPProtocol

#: Seconds in which the head of a request must arrive, counted from the connection or from the head's first byte.
HEAD_SECONDS = 30.0
#: Seconds without a further byte of a body after which the request is ended.
IDLE_SECONDS = 30.0
#: Bytes a second that a body must reach on average, so that one byte at a time does not get around `IDLE_SECONDS`.
SLOWEST_RATE = 10_000


class ImpatientProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol with a time limit for a request's head, which uvicorn itself would wait for without end."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the time limit of the first head."""
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        """Stop the time limit when the head is complete, and start one with the first byte of the next head."""
        super().data_received(data)
        if not self._waits_for_head():
            self._stop()
        elif self._deadline is None:
            self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time limit."""
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
    """Receives a request's body (ASGI), and reports a disconnect to the application if the body stops coming.

    Args:
        receive: the server's function that receives messages.
        length: bytes of the body, as its header says.

    Attributes:
        is_over: True once the time limit has ended the request.
    """

    def __init__(self, receive: Receive, length: int) -> None:
        self._receive = receive
        self._is_whole = False
        self._end = time.monotonic() + IDLE_SECONDS + length / SLOWEST_RATE
        self.is_over = False

    async def __call__(self) -> Message:
        """Receive the next part of the body."""
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
