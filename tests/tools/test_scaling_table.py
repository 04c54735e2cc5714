from pathlib import Path

import pytest

from tools.scaling_table import COLUMNS, PLACES, ROWS, TIMES, footprint_of, memory_cells, table, time_cells

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"
TABLES = {"scaling-table": ((*COLUMNS, *PLACES), memory_cells), "time-table": (TIMES, time_cells)}


def on_the_page(name: str) -> list[str]:
    _, content, _ = PAGE.read_text().split(f"<!-- {name} -->")
    return content.strip().splitlines()


@pytest.mark.parametrize("name", TABLES)
def test_the_page_has_every_row_once(name: str) -> None:
    header, _, *rows = on_the_page(name)
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(ROWS)
    assert header.count("|") == len(TABLES[name][0]) + 2


@pytest.mark.parametrize("row", ["SFT, LoRA on 4 bits, 1 GPU", "the same, offloaded to the host"])
def test_rows_of_the_page_are_what_the_tool_prints(row: str) -> None:
    footprints = {row: footprint_of(row)}
    for name, (columns, cells) in TABLES.items():
        header, _, printed = table(columns, footprints, cells)
        assert {header, printed} <= set(on_the_page(name))
