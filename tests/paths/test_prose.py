"""Docstrings can be read alone: a first line is a sentence or a noun phrase, an entry's text is a noun phrase."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("aurora_rl", "benchmarks", "data_prep", "recipes", "reward_fns", "tools")
PREPOSITION = re.compile(r"(of|as|in|for|from|with|by|to)\b", re.IGNORECASE)
SECTION = re.compile(r"(Args|Attributes):")
ENTRY = re.compile(r" {4}(?P<name>\S[^:]*): (?P<text>.*)")


def docstrings(source: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line of each definition (1 for the module) and the lines of its docstring."""
    for node in ast.walk(ast.parse(source)):
        has_docstring = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if has_docstring and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text.splitlines()


def bad_first_lines(source: str) -> list[str]:
    """List the first lines that begin with a preposition, each with the line of its definition."""
    return [f"{number}: {lines[0]}" for number, lines in docstrings(source) if PREPOSITION.match(lines[0])]


def bad_entries(source: str) -> list[str]:
    """List the entries of arguments and attributes that begin with a preposition, likewise."""
    found = []
    for number, lines in docstrings(source):
        is_section = False
        for line in lines:
            if line and not line.startswith(" "):
                is_section = SECTION.fullmatch(line) is not None
            entry = ENTRY.fullmatch(line) if is_section else None
            if entry and PREPOSITION.match(entry["text"]):
                found.append(f"{number}: {line.strip()}")
    return found


def sources(room: str) -> list[Path]:
    path = ROOT / room
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    assert files and all(file.is_file() for file in files), f"{room} is not there: name rooms that exist"
    return files


@pytest.mark.parametrize("room", ROOMS)
def test_first_lines_do_not_begin_with_a_preposition(room):
    bad = [f"{file.relative_to(ROOT)}:{line}" for file in sources(room) for line in bad_first_lines(file.read_text())]

    assert not bad, "begin with an imperative or a noun:\n" + "\n".join(bad)


@pytest.mark.parametrize("room", ROOMS)
def test_entries_do_not_begin_with_a_preposition(room):
    bad = [f"{file.relative_to(ROOT)}:{line}" for file in sources(room) for line in bad_entries(file.read_text())]

    assert not bad, "say what it is, as in 'start of the window, in seconds':\n" + "\n".join(bad)


def test_a_first_line_and_an_entry_that_begin_badly_are_found():
    source = '''"""Of what is read."""
def read(start, end):
    """Read a window.

    Args:
        start: of the window, in seconds.
        end: end of the window: of all of it,
            in seconds.

    Returns:
        for: no entry of an argument.
    """
'''

    assert bad_first_lines(source) == ["1: Of what is read."]
    assert bad_entries(source) == ["2: start: of the window, in seconds."]
