"""Write the table of docs/models.md: what was run of each family, by running it.

python tools/models_table.py

It runs every test that fills a cell, then `benchmarks/vllm_parity.py` where no test measures a family inside vLLM. A
test fills a cell by `record_property("cell", "model_type|column|text")` after its asserts; texts such as `1 of 14
checks` add up over tests. A test that fails or is skipped fills nothing, and its cell says so. The exit code is 1 if
one fails.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import io
import json
import re
import subprocess
import sys
import tempfile
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from aurora_rl.assembly.options import OptionParser
from aurora_rl.files.atomic import write_whole
from aurora_rl.models.mllm import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/models.md"
BEGIN, END = "<!-- written by tools/models_table.py -->", "<!-- end of what it writes -->"
BEFORE, AFTER = "vLLM before a sync", "vLLM after a sync"
COLUMNS = ("contract", "SFT", "GRPO", BEFORE, AFTER, "ZeRO-3")
NOT_RUN = "not run"
#: A row for each family, under the first of its names.
ROWS = {family.model_types[0]: family for family in FAMILIES}
#: That name by each of a family's names.
NAMES = {name: family.model_types[0] for family in FAMILIES for name in family.model_types}
#: Lines of code that a regular family may have.
MOST_LINES = 60
#: A call that fills a cell, in the source of a test: its column is known before the test has run.
RECORDED = re.compile(r'record_property\(\s*"cell"')
#: Tokens of Python that are no code.
WITHOUT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
COUNTED = re.compile(r"(\d+) of (\d+) (.+)")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one test for one cell.

    Attributes:
        model_type: row of the cell.
        column: its column.
        status: "passed", "failed" or "skipped".
        text: what was measured, or why it was skipped.
    """

    model_type: str
    column: str
    status: str
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Cells:
    """The cells that a test fills.

    Attributes:
        columns: their columns.
        rows: their rows, where the source names them; else the test's parameters do.
    """

    columns: tuple[str, ...]
    rows: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Results:
    """What came of a run of tests.

    Attributes:
        outcomes: those of cells.
        failed: names of the tests that failed, of whatever cell.
    """

    outcomes: tuple[Outcome, ...]
    failed: tuple[str, ...]


def recording_tests(tests: Path) -> dict[str, Cells]:
    """Find the tests that fill cells, by `path::function`, with the cells that each names in its source."""
    found = {}
    for path in sorted(tests.rglob("test_*.py")):
        text = path.read_text()
        for node in ast.parse(text).body if RECORDED.search(text) else ():
            source = ast.get_source_segment(text, node) or ""
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test") and RECORDED.search(source):
                found[f"{path.relative_to(tests.parent)}::{node.name}"] = _named_cells(source, text)
    return found


def _named_cells(source: str, module: str) -> Cells:
    """Return what the source of a test names; the columns may also be constants, or be named by its module alone."""
    columns = _columns_in(source) or _columns_in(module)
    return Cells(columns, tuple(dict.fromkeys(NAMES[name] for name in NAMES if f'"{name}|' in source)))


def _columns_in(source: str) -> tuple[str, ...]:
    constants = {BEFORE: "BEFORE", AFTER: "AFTER"}
    return tuple(
        column
        for column in COLUMNS
        if f"|{column}|" in source or (column in constants and re.search(rf"\b{constants[column]}\b", source))
    )


def run_tests(nodes: Iterable[str], xml: Path) -> None:
    """Run tests by pytest, which may fail, and have it write what came of each."""
    options = ["-q", "-p", "no:cacheprovider", f"--junitxml={xml}", "-o", "junit_family=xunit1"]
    subprocess.run([sys.executable, "-m", "pytest", *options, *nodes], cwd=ROOT, check=False)
    if not xml.is_file():
        raise RuntimeError(f"pytest wrote no {xml}: see above")


def read_results(xml: Path, tests: Mapping[str, Cells]) -> Results:
    """Read what came of the tests.

    The cells of a test that did not pass are those that its source names, in the row of the family in its name, or in
    all rows if nothing names one; what it has recorded does not count.

    Args:
        xml: pytest's report, with `file` for each test (`junit_family=xunit1`).
        tests: result of `recording_tests`.
    """
    outcomes: list[Outcome] = []
    failed = []
    for case in ElementTree.parse(xml).iter("testcase"):
        status, reason = _status(case)
        name = case.get("name", "")
        node = f"{case.get('file')}::{name.partition('[')[0]}"
        if status == "failed":
            failed.append(f"{case.get('file')}::{name}")
        if status == "passed":
            outcomes += map(read_cell, _recorded(case))
            continue
        cells = tests.get(node, Cells(()))
        rows = [NAMES[word] for word in re.split(r"[\[\]-]", name) if word in NAMES] or cells.rows or ROWS
        outcomes += [Outcome(row, column, status, reason) for row in rows for column in cells.columns]
    return Results(tuple(outcomes), tuple(failed))


def _status(case: ElementTree.Element) -> tuple[str, str]:
    for tag, status in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        if (found := case.find(tag)) is not None:
            return status, found.get("message", "")
    return "passed", ""


def _recorded(case: ElementTree.Element) -> list[str]:
    found = case.iterfind("properties/property[@name='cell']")
    return [cell.get("value", "") for cell in found]


def read_cell(cell: str) -> Outcome:
    """Read what a passed test has recorded, `model_type|column|text`.

    Raises:
        ValueError: if it is no cell of the table.
    """
    model_type, column, text = [*cell.split("|", 2), "", ""][:3]
    if model_type not in NAMES or column not in COLUMNS or not text.strip():
        raise ValueError(
            f"{cell!r} is no cell: expected 'model_type|column|text', with a model_type of {', '.join(NAMES)} and a "
            f"column of {', '.join(COLUMNS)}"
        )
    return Outcome(NAMES[model_type], column, "passed", text.strip())


def cell_text(outcomes: Sequence[Outcome]) -> str:
    """Join what came of a cell's tests into its text; one failed test makes it a failure, whatever the others say."""
    if any(outcome.status == "failed" for outcome in outcomes):
        return "**fails**"
    passed = [outcome.text for outcome in outcomes if outcome.status == "passed"]
    counted = [match for match in map(COUNTED.fullmatch, passed) if match]
    texts = [text for text in dict.fromkeys(passed) if not COUNTED.fullmatch(text)]
    for (total, what), count in _sums(counted).items():
        texts.append(f"{count} of {total} {what}")
    skipped = dict.fromkeys(outcome.text for outcome in outcomes if outcome.status == "skipped")
    texts += [f"{NOT_RUN}: {reason}" for reason in skipped]
    return _cleaned(", ".join(texts)) or NOT_RUN


def _sums(counted: Iterable[re.Match[str]]) -> dict[tuple[str, str], int]:
    sums: dict[tuple[str, str], int] = defaultdict(int)
    for match in counted:
        sums[match[2], match[3]] += int(match[1])
    return sums


def _cleaned(text: str) -> str:
    """Make a text fit into a cell of a Markdown table."""
    return re.sub(r"\s+", " ", text).replace("|", "/")


def refusals() -> list[Outcome]:
    """Return the cells of families that vLLM is refused for, which the code itself says."""
    return [
        Outcome(model_type, column, "passed", f"refused: {family.engine_refusal}")
        for model_type, family in ROWS.items()
        if family.engine_refusal
        for column in (BEFORE, AFTER)
    ]


def measure_parity(families: Iterable[str]) -> Results:
    """Measure families inside vLLM, each in a process of its own, by `benchmarks/vllm_parity.py --family X --json`."""
    outcomes, failed = [], []
    for family in families:
        command = [sys.executable, "benchmarks/vllm_parity.py", "--family", family, "--json"]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        try:
            cells = json.loads(done.stdout.strip().splitlines()[-1])
            outcomes += [read_cell(f"{family}|{column}|{text}") for column, text in cells.items()]
        except (IndexError, ValueError, AttributeError):
            outcomes += [Outcome(family, column, "failed") for column in (BEFORE, AFTER)]
        if done.returncode:
            failed.append(" ".join(command[1:]))
    return Results(tuple(outcomes), tuple(failed))


def code_lines(*files: Path) -> int:
    """Count the lines of files on which code stands: no blank lines, no comments, no docstrings."""
    return sum(
        len(_lines_of_tokens(text) - _lines_of_docstrings(text)) for text in (file.read_text() for file in files)
    )


def _lines_of_tokens(text: str) -> set[int]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {
        line for token in tokens if token.type not in WITHOUT_CODE for line in range(token.start[0], token.end[0] + 1)
    }


def _lines_of_docstrings(text: str) -> set[int]:
    """Return the lines of strings that are statements of their own."""
    strings = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    return {line for node in strings for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}


def family_folder(model_type: str) -> Path:
    """Return the folder of a family's code."""
    return ROOT / Path(*ROWS[model_type].__module__.split("."))


def family_lines(model_type: str) -> tuple[int, int]:
    """Count a family's lines of code, and those of its class for vLLM; the maker of tiny models is left out."""
    folder = family_folder(model_type)
    engine = folder / "engine.py"
    own = [path for path in folder.glob("*.py") if path.name not in ("engine.py", "tiny.py")]
    return code_lines(*own), code_lines(engine) if engine.is_file() else 0


def table(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Yield the lines of the table, with a row for each family."""
    by_cell: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_cell[outcome.model_type, outcome.column].append(outcome)
    yield "| family | " + " | ".join(COLUMNS) + " | code lines |"
    yield "|---" * (len(COLUMNS) + 2) + "|"
    for model_type in ROWS:
        own, engine = family_lines(model_type)
        lines = f"{own} + {engine} for vLLM" if engine else str(own)
        cells = [cell_text(by_cell[model_type, column]) for column in COLUMNS]
        yield f"| `{model_type}` | " + " | ".join([*cells, lines]) + " |"


def write_table(page: str, lines: Iterable[str], failed: Sequence[str]) -> str:
    """Return the page with the table, and the tests that failed below it, between its two marks.

    Raises:
        ValueError: if a mark is missing.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"the page must hold the lines {BEGIN!r} and {END!r} once, in this order")
    below = ["", "Failed:", "", *(f"- `{name}`" for name in failed)] if failed else []
    head, tail = page.split(BEGIN)[0], page.split(END)[1]
    return head + "\n".join([BEGIN, "", *lines, *below, "", END]) + tail


def main(argv: Sequence[str] | None = None) -> int:
    """Run what fills the table, write the page, and return 1 if something failed."""
    parser = OptionParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="report of a pytest run that is read instead of running the tests")
    parser.add_argument("--without_vllm", action="store_true", help="leave out what no test measures inside vLLM")
    args = parser.parse_args(argv)
    tests = recording_tests(ROOT / "tests")
    with contextlib.ExitStack() as stack:
        xml = args.results or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "results.xml"
        if args.results is None:
            run_tests(tests, xml)
        results = read_results(xml, tests)
    outcomes = [*refusals(), *results.outcomes]
    known = {outcome.model_type for outcome in outcomes if outcome.column in (BEFORE, AFTER)}
    rest = [] if args.without_vllm else [family for family in ROWS if family not in known]
    parity = measure_parity(rest)
    failed = [*results.failed, *parity.failed]
    write_whole(PAGE, write_table(PAGE.read_text(), table([*outcomes, *parity.outcomes]), failed))
    print(f"{PAGE.relative_to(ROOT)}: {len(tests)} tests fill cells, {len(failed)} runs failed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
