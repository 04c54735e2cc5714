"""The key of an endpoint: it comes from the environment alone, and is cut out of every text that may quote it."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import re
import urllib.parse

NO_KEY = "EMPTY"  # what local servers are sent, who ask for none
SHORTEST_SECRET = 8  # characters; shorter keys ("EMPTY", "x") are placeholders, and words of ordinary replies
BEGINNING = 12  # characters of a long key by which one that is quoted in part is found


@dataclasses.dataclass(frozen=True)
class ApiKey:
    """A key that does not show.

    Attributes:
        variable: environment variable that it was looked for in.
        value: the key; None where there is none.
    """

    variable: str
    value: str | None = dataclasses.field(repr=False)

    @classmethod
    def read(cls, variable: str) -> ApiKey:
        """Read the key from an environment variable, which may be empty or not set.

        Raises:
            ValueError: if the variable's name or the key cannot be one. It shows neither: each may be the key.
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
        """Text without the key, however it is written, or a beginning of it; keys under `shortest` characters stay."""
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
