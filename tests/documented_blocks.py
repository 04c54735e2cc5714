"""The fenced blocks of README and docs, with the comment that stands above one.

<!-- not run: WHY -->            it needs what a test cannot have
<!-- run by: tests/FILE.py -->   that test reads the page
<!-- run with: STATEMENT -->     executed after this statement, of the block's own language
"""

import dataclasses
import functools
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "data_prep/README.md",
    "reward_fns/README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(
    r"(?:^[ ]*<!--[ ](?P<mark>not\ run|run\ by|run\ with):[ ](?P<text>.+?)[ ]-->\n)?"
    r"^(?P<indent>[ ]*)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page, with the comment above it."""

    page: str
    line: int
    language: str
    code: str
    mark: str | None
    text: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@functools.cache
def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    return [
        Block(page, text[: m.start("indent")].count("\n") + 1, m["language"], m["code"], m["mark"], m["text"])
        for m in BLOCK.finditer(text)
    ]


def all_blocks(language: str | None = None) -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page) if language in (None, block.language)]


def marked(mark: str) -> list[Block]:
    return [block for block in all_blocks() if block.mark == mark]


def unmarked(language: str) -> list[Block]:
    """Blocks that are run or read as what they are, by the tests of documentation themselves."""
    return [block for block in all_blocks(language) if block.mark in (None, "run with")]
