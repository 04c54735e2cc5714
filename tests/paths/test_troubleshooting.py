"""The page of messages, held to the code: each message is a text that some program here can say."""

import ast
import re
from functools import cache

import pytest

from tests.documented_blocks import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| `")
]
GAP = "…"


@cache
def literals() -> tuple[str, ...]:
    """All texts in the code but its docstrings, a value in the middle of a text as a gap."""
    files = [file for name in ("aurora_rl", "recipes", "data_prep") for file in sorted((ROOT / name).rglob("*.py"))]
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in files)
    nodes = [node for tree in trees for node in ast.walk(tree)]
    docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
    return tuple(text for node in nodes if node not in docstrings and (text := text_of(node)))


def text_of(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(value) or GAP for value in node.values)
    return ""


def is_said(message: str) -> bool:
    """Whether a text has the message's parts in this order, from its beginning unless the message begins with a gap."""
    parts = [re.escape(part.strip()) for part in message.split(GAP) if part.strip()]
    pattern = re.compile(f"{'.*' if message.startswith(GAP) else ''}{'.*'.join(parts)}", re.DOTALL)
    return any(pattern.match(text) for text in literals())


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:60] for row in ROWS])
def test_message_is_one_that_the_code_says_with_a_cause_and_a_remedy(row: list[str]) -> None:
    message, cause, remedy = row
    assert cause and remedy
    words = message.strip("`").replace(GAP, " ")
    assert len(re.findall(r"\w+", words)) >= 3, "a message of so few words would be found anywhere"
    assert is_said(message.strip("`"))


def test_a_message_that_nobody_says_is_found_out() -> None:
    assert len(ROWS) > 40 and is_said("… has no split …: choose from …")
    assert not is_said("… has no split …: choose among …") and not is_said("has no split")
