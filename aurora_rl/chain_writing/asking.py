"""A question about one row, whose reply is the row's record."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from aurora_rl.data.containers import MediaError
from aurora_rl.endpoint.client import ChatEndpoint
from aurora_rl.endpoint.replies import Usage
from aurora_rl.endpoint.rows import RowFailedError
from aurora_rl.files.journal import Record


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about one row.

    Attributes:
        uid: uid of the row.
        row: number of the row.
        split: split of the row.
        schema: JSON schema of the reply; None for one in any form.
        messages: function that makes the conversation and reads the clip's files for it; may raise `MediaError` or
            `RowFailedError`.
        read: function that makes the row's record from a reply, and names the repairs; may raise `BadReplyError`.
    """

    uid: str
    row: int
    split: str
    schema: dict[str, Any] | None
    messages: Callable[[], list[dict[str, Any]]]
    read: Callable[[str], tuple[Record, Sequence[str]]]

    async def answer(self, endpoint: ChatEndpoint, on_usage: Callable[[Usage], None]) -> tuple[Record, Sequence[str]]:
        """Ask, see `endpoint.rows.RowWork`."""
        try:
            messages = await asyncio.to_thread(self.messages)
        except MediaError as error:
            raise RowFailedError("media", str(error)) from error
        return await endpoint.ask(messages, read=self.read, schema=self.schema, schema_name="chain", on_usage=on_usage)
