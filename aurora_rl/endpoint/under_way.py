"""Counts of the questions in progress, by which an unclear refusal is judged."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class QuestionsUnderWay:
    """Counts the questions in progress, and records whether the endpoint has answered any.

    Attributes:
        has_answered: whether any question has had a reply, valid or not.
    """

    def __init__(self) -> None:
        self.has_answered = False
        self._asking = self._undecided = 0  # questions in progress; those of them that wait for the replies to others
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def one_more(self) -> AsyncIterator[None]:
        """A question is under way as long as the block runs."""
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1
            await self._tell()

    async def note_answer(self) -> None:
        """The endpoint has answered one of them."""
        self.has_answered = True
        await self._tell()

    async def nobody_is_answered(self) -> bool:
        """Whether a refusal that may concern its question concerns all.

        It is known once another question under way has a reply, or none is left that may still get one.
        """
        self._undecided += 1
        try:
            await self._tell()
            async with self._changed:
                await self._changed.wait_for(lambda: self.has_answered or self._undecided >= self._asking)
        finally:
            self._undecided -= 1
        return not self.has_answered

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
