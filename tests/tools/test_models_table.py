"""The table of families: a test that fails, is skipped or is missing never becomes a pass; no model is run."""

from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import pytest

from aurora_rl.models.mllm import MLLM_FAMILIES
from tools import models_table
from tools.models_table import (
    BEGIN,
    COLUMNS,
    END,
    NAMES,
    PAGE,
    ROWS,
    Cells,
    cell_text,
    code_lines,
    read_cell,
    read_results,
)

TESTS = {
    "tests/test_a.py::test_checks": Cells(("contract",)),
    "tests/test_a.py::test_runs": Cells(("SFT", "GRPO")),
    "tests/test_a.py::test_one": Cells(("SFT",), ("qwen3_5",)),
}
FAILED = "<failure message='no'>trace</failure>"


def case(name: str, *cells: str, inside: str = "", file: str = "tests/test_a.py") -> str:
    recorded = "".join(f"<property name='cell' value={quoteattr(cell)}/>" for cell in cells)
    return f"<testcase file='{file}' name={quoteattr(name)}><properties>{recorded}</properties>{inside}</testcase>"


def results(tmp_path: Path, *cases: str) -> models_table.Results:
    xml = tmp_path / "results.xml"
    xml.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    return read_results(xml, TESTS)


def row(found: models_table.Results, family: str) -> dict[str, str]:
    line = next(line for line in models_table.table(found.outcomes) if line.startswith(f"| `{family}` |"))
    return dict(zip(["", "family", *COLUMNS, "code lines"], map(str.strip, line.split("|")), strict=False))


def test_checks_add_up_and_one_that_fails_is_a_failure(tmp_path: Path) -> None:
    checks = [case(f"test_checks[{n}-qwen3_vl]", "qwen3_vl|contract|1 of 3 checks") for n in "ab"]
    assert row(results(tmp_path, *checks), "qwen3_vl")["contract"] == "2 of 3 checks"
    found = results(tmp_path, *checks, case("test_checks[c-qwen3_vl]", inside=FAILED))
    assert row(found, "qwen3_vl")["contract"] == "**fails**"
    assert row(found, "qwen3_5")["contract"] == "not run"
    assert found.failed == ("tests/test_a.py::test_checks[c-qwen3_vl]",)


def test_a_failure_that_names_no_family_spoils_its_columns_in_all_rows(tmp_path: Path) -> None:
    good = case("test_runs[qwen3_5]", "qwen3_5|SFT|passes", "qwen3_5|GRPO|passes", "qwen3_5|ZeRO-3|2e-6")
    found = results(tmp_path, good, case("test_runs", inside="<error message='fixture'/>"))
    cells = row(found, "qwen3_5")
    assert (cells["SFT"], cells["GRPO"], cells["ZeRO-3"]) == ("**fails**", "**fails**", "2e-6")


def test_a_failure_of_a_test_of_one_family_spoils_that_row_alone(tmp_path: Path) -> None:
    found = results(tmp_path, case("test_one[True]", inside=FAILED))
    assert (row(found, "qwen3_5")["SFT"], row(found, "qwen3_vl")["SFT"]) == ("**fails**", "not run")


def test_a_failed_test_s_own_words_are_not_believed(tmp_path: Path) -> None:
    found = results(tmp_path, case("test_runs[qwen3_5]", "qwen3_5|SFT|passes", inside=FAILED))
    assert row(found, "qwen3_5")["SFT"] == "**fails**"


def test_what_was_skipped_or_is_missing_was_not_run(tmp_path: Path) -> None:
    found = results(tmp_path, case("test_runs[qwen3_5]", inside="<skipped message='no | GPU'/>"))
    cells = row(found, "qwen3_5")
    assert cells["SFT"] == "not run: no / GPU" and cells["contract"] == cells["ZeRO-3"] == "not run"
    assert found.failed == ()


def test_a_failure_without_cells_is_told_below_the_table(tmp_path: Path) -> None:
    found = results(tmp_path, case("", inside=FAILED, file="tests/test_b.py"))
    assert found.failed and not found.outcomes
    page = models_table.write_table(f"before\n{BEGIN}\nold\n{END}\nafter\n", ["| table |"], found.failed)
    assert page.startswith(f"before\n{BEGIN}\n\n| table |") and "- `tests/test_b.py::`" in page
    assert page.endswith(f"{END}\nafter\n") and "old" not in page


@pytest.mark.parametrize("page", ["no marks", f"{END} {BEGIN}", f"{BEGIN} {BEGIN} {END}"])
def test_a_page_without_its_marks_is_left_alone(page: str) -> None:
    with pytest.raises(ValueError, match="must hold the lines"):
        models_table.write_table(page, [], [])


@pytest.mark.parametrize("cell", ["qwen9|SFT|passes", "qwen3_vl|sft|passes", "qwen3_vl|SFT| ", "qwen3_vl"])
def test_a_cell_that_the_table_has_not_is_an_error(cell: str) -> None:
    with pytest.raises(ValueError, match="is no cell: expected 'model_type"):
        read_cell(cell)


def test_other_names_of_a_family_are_its_row() -> None:
    assert read_cell("qwen2_5_omni_thinker|SFT|passes").model_type == "qwen2_5_omni"


def test_texts_that_do_not_add_up_stand_beside_each_other() -> None:
    found = [read_cell(f"qwen3_vl|ZeRO-3|{text}") for text in ("2e-6", "2e-6", "after a step 3e-6")]
    assert cell_text(found) == "2e-6, after a step 3e-6"
    assert cell_text([]) == "not run"


def test_the_command_ends_with_1_if_a_run_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "docs.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    monkeypatch.setattr(models_table, "PAGE", page)
    monkeypatch.setattr(models_table, "ROOT", tmp_path)
    monkeypatch.setattr(models_table, "family_lines", lambda _: (1, 0))
    for inside, code in ((FAILED, 1), ("", 0)):
        results(tmp_path, case("test_runs[qwen3_vl]", inside=inside))
        assert models_table.main(["--results", str(tmp_path / "results.xml"), "--without_vllm"]) == code
        assert ("Failed:" in page.read_text()) is bool(code)


def test_a_family_that_does_not_run_inside_vllm_fails_there(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[int, str]] = [(0, 'a line\n{"vLLM before a sync": "2e-6"}\n'), (1, "a line\n"), (1, "")]

    def run(*_: Any, **options: Any) -> Any:
        code, text = said.pop(0)
        return models_table.subprocess.CompletedProcess([], code, text)

    monkeypatch.setattr(models_table.subprocess, "run", run)
    found = models_table.measure_parity(["qwen3_vl", "qwen3_5", "qwen2_5_vl"])
    assert row(found, "qwen3_vl")["vLLM before a sync"] == "2e-6"
    assert row(found, "qwen3_vl")["vLLM after a sync"] == "not run"
    assert row(found, "qwen3_5")["vLLM after a sync"] == row(found, "qwen2_5_vl")["vLLM before a sync"] == "**fails**"
    assert len(found.failed) == 2


def test_lines_of_code_are_counted_without_docstrings_comments_and_blanks(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(
        '"""Module.\n\nText.\n"""\n\n# why\nX = (\n    1,  # one\n)\n\n\ndef f():\n    """Doc."""\n    return "#"\n'
    )
    assert code_lines(file) == 5
    assert code_lines(file, file) == 10


def test_tests_that_fill_cells_are_found_with_what_they_name(tmp_path: Path) -> None:
    file = tmp_path / "tests" / "test_a.py"
    file.parent.mkdir()
    record = "record_property(" + '"cell", f"{}|{}|{{text}}")'  # in two, so that this test is none of them
    bodies = {
        "test_plain": record.format("{name}", "contract"),
        "test_one": record.format("qwen2_5_omni_thinker", "{BEFORE}"),
        "test_both": record.format("{name}", "{column}"),
        "test_none": "pass",
    }
    imports = "from x import AFTER, BEFORE\n"
    file.write_text(imports + "".join(f"def {name}(record_property):\n    {body}\n" for name, body in bodies.items()))
    assert models_table.recording_tests(file.parent) == {
        "tests/test_a.py::test_plain": Cells(("contract",)),
        "tests/test_a.py::test_one": Cells(("vLLM before a sync",), ("qwen2_5_omni",)),
        "tests/test_a.py::test_both": Cells(("contract", "vLLM before a sync", "vLLM after a sync")),
    }


def test_each_test_here_that_fills_a_cell_names_its_column() -> None:
    found = models_table.recording_tests(models_table.ROOT / "tests")
    assert found["tests/models/mllm/test_contract.py::test_the_family_passes"] == Cells(("contract",))
    assert not [test for test in found if test.startswith("tests/tools/")]
    unnamed = [test for test, cells in found.items() if not cells.columns]
    assert not unnamed, f"{unnamed} fill cells of columns that their sources do not name: see tools/models_table.py"


def test_each_family_is_a_row_of_the_page() -> None:
    page = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    assert NAMES.keys() == MLLM_FAMILIES.keys()
    missing = [family for family in ROWS if f"| `{family}` |" not in page]
    assert not missing, f"docs/models.md lacks {missing}: run python tools/models_table.py"


@pytest.mark.parametrize("family", ROWS)
def test_the_page_says_how_many_lines_of_code_there_are_now(family: str) -> None:
    own, engine = models_table.family_lines(family)
    written = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    [line] = [line for line in written.splitlines() if line.startswith(f"| `{family}` |")]
    assert line.split(" | ")[-1] == (f"{own} + {engine} for vLLM |" if engine else f"{own} |")
