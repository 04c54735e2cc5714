"""Griffe extension: worked examples (`>>> ...`) at any place of a docstring become code blocks.

Griffe recognises them in a section `Examples:` only; Markdown reads `>>>` as a quotation and the rest as text.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*\n(?:.+\n?)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """Fences the examples of every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(lambda e: f"```pycon\n{e[0].rstrip()}\n```\n", obj.docstring.value)
