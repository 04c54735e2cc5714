"""The key of an endpoint: it comes from the environment only, and is removed from every text that may quote it."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import re
import urllib.parse

NO_KEY = "EMPTY"  # value for local servers, which need no key
SHORTEST_SECRET = 8  # characters; shorter keys ("EMPTY", "x") are placeholders, and may be words of any reply
BEGINNING = 12  # first characters of a long key, by which a partly quoted key is found


@dataclasses.dataclass(frozen=True)
class ApiKey:
    """A key whose text is not shown.

    Attributes:
        variable: environment variable that may hold it.
        value: the key; None if there is none.
    """

    variable: str
    value: str | None = dataclasses.field(repr=False)

    @classmethod
    def read(cls, variable: str) -> ApiKey:
        """Read the key from an environment variable, which may be empty or unset.

        Raises:
            ValueError: if the variable's name or the key is invalid. The message shows neither: each may be the key.
        """
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
            raise ValueError(
                "api_key_env is no name of an environment variable: put the key into one, and give its name"
            )
        key = os.environ.get(variable, "").strip()
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ValueError("the key in the environment holds blanks or characters that no key has: set it again")
        return cls(variable, key or None)

    def cut_out(self, text: str, *, shortest: int = 1) -> str:
        """Remove the key, escaped or not, and beginnings of it from a text; keys under `shortest` characters stay."""
        if self.value is None or len(self.value) < shortest:
            return text
        for written in (
            self.value,
            json.dumps(self.value)[1:-1],
            html.escape(self.value),
            urllib.parse.quote(self.value, ""),
        ):
            text = text.replace(written, "[key]")
        if len(self.value) <= BEGINNING:
            return text
        return re.sub(re.escape(self.value[:BEGINNING]) + r"[^\s\"'<>,;]*", "[key]", text)
