"""The page of one system's scores, and the page of two systems."""

import dataclasses
import re
from pathlib import Path

from aurora_rl.evaluation.comparison import compare_results
from aurora_rl.evaluation.records import RowResult
from aurora_rl.evaluation.tables import mark_novelty, score_tables
from aurora_rl.report.score_page import write_comparison_page, write_score_page
from tests.row_results import row

DERIVED = r"The types of {} of 12 references are derived from the words of the sentence"


def rows(*, derived: int) -> list[RowResult]:
    """Twelve rows about clips of their own, half of them in the unseen split; a third is of the untrained tabla."""
    made = [
        row(
            number,
            ("test_s", "test_u")[number % 2],
            category="tabla" if number in (1, 3, 5, 7) else "drum",
            reference_type="audio",
            type_is_derived=number < derived,
            J=number / 12,
            F=number / 24,
        )
        for number in range(12)
    ]
    return mark_novelty(made, ["drum"])


def page_of(path: Path, scores: list[RowResult]) -> str:
    write_score_page(path, score_tables(scores) | {"source": "a model"}, scores)
    return path.read_text()


def test_every_number_with_an_interval_shows_it(tmp_path: Path):
    page = page_of(tmp_path / "page.html", rows(derived=0))
    # J, F and J&F of two splits, two kinds of Mix, two kinds of novelty, one type and two categories.
    assert len(re.findall(r'class="under interval">\[0\.\d+, 0\.\d+\]<', page)) == 3 * 9


def test_derived_types_are_called_so_on_both_pages_and_told_types_are_not(tmp_path: Path):
    for derived in (0, 5):
        scores = rows(derived=derived)
        write_comparison_page(tmp_path / "both.html", compare_results(scores, scores), first="a", second="b")
        for page in (page_of(tmp_path / "page.html", scores), (tmp_path / "both.html").read_text()):
            assert bool(re.search(DERIVED.format(5), page)) == (derived == 5)
            assert ("are derived" in page) == (derived == 5)


def test_comparison_shows_seen_and_new_categories_where_they_are_known(tmp_path: Path):
    known = rows(derived=0)
    for scores, is_shown in ((known, True), ([dataclasses.replace(each, novelty=None) for each in known], False)):
        write_comparison_page(tmp_path / "both.html", compare_results(scores, scores), first="a", second="b")
        page = (tmp_path / "both.html").read_text()
        assert ("test_u, new categories" in page) == ("test_u, seen categories" in page) == is_shown
