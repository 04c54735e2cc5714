from pathlib import Path

import pytest

from tools.scaling_table import COLUMNS, ROWS, lines

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"


def table() -> list[str]:
    _, content, _ = PAGE.read_text().split("<!-- scaling-table -->")
    return content.strip().splitlines()


def test_the_page_has_every_row_once() -> None:
    assert [line.split(" | ")[0].removeprefix("| ") for line in table()[2:]] == list(ROWS)
    assert table()[0].count("|") == len(COLUMNS) + 3


@pytest.mark.parametrize("name", ["SFT, LoRA on 4 bits, 1 GPU", "GRPO, full, 8 GPUs, ZeRO-3"])
def test_rows_of_the_page_are_what_the_tool_prints(name: str) -> None:
    *_, row = lines([name])
    assert row in table()
