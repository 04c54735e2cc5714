"""The reports' wide tables on a screen of 1280 pixels and on a phone's 390, as Chromium lays them out."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from aurora_rl.evaluation.comparison import compare_results
from aurora_rl.evaluation.records import RowResult, write_evaluation
from aurora_rl.evaluation.tables import mark_novelty, score_tables
from aurora_rl.report.score_page import write_comparison_page, write_score_page
from aurora_rl.report.training_page import Run, write_training_page
from tests.row_results import answered, null, replied, rollout
from tests.serve.chromium import Tab, find_chromium, open_chromium

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="needs Chromium or Chrome on the PATH")

LONG = "The object that sounds after the man with the very long coat has begun to laugh for the second time, once more"
WIDE_WORD = "a_category_whose_name_is_one_word_without_any_place_to_break_it_" * 2


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with open_chromium(find_chromium() or "", tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def rows(level: float) -> list[RowResult]:
    """A model's rows with every number that there is: sampled completions, null references, seen and new categories."""
    sampled = (rollout(1.0, 1.0, level), rollout(0.0, 1.0, level))
    made = [
        answered(
            number,
            ("test_s", "test_u", "val_with_a_longer_name")[number % 3],
            category=("drum", "tabla", "guitar and a man")[number % 3],
            reference=LONG if number == 3 else "The drum.",
            reference_type=("audio", "audio + space")[number % 2],
            J=min(1.0, level + number / 24),
            F=level,
            iou=level,
            sampled=sampled,
        )
        for number in range(12)
    ]
    made += [dataclasses.replace(answered(number, sampled=sampled), **vars_of_null(number)) for number in (12, 13)]
    return mark_novelty(made, ["drum"])


def vars_of_null(number: int) -> dict[str, object]:
    made = null(number, 0.25)
    return {name: getattr(made, name) for name in ("split", "category", "reference_type", "S")}


def words() -> list[RowResult]:
    """Questions with a task's own scores, which have long names."""
    scores = {f"a_score_of_the_task_{index}": 0.5 for index in range(8)}
    return [replied(number, is_right=bool(number % 2), scores=scores) for number in range(8)]


def write_pages(folder: Path) -> dict[str, Path]:
    first, second = rows(0.25), rows(0.5)
    one = dataclasses.replace(second[0], category=WIDE_WORD, uid=WIDE_WORD)
    pages = {name: folder / f"{name}.html" for name in ("scores", "words", "comparison", "training")}
    write_score_page(pages["scores"], score_tables([one, *second[1:]]) | {"source": "a model"}, [one, *second[1:]])
    write_score_page(pages["words"], score_tables(words()) | {"source": "a model"}, words())
    write_comparison_page(pages["comparison"], compare_results(first, second), first="SFT of 3 B", second="GRPO")
    runs = []
    for name, results in (("SFT", first), ("GRPO", second), ("GRPO without a chain", rows(0.75))):
        write_evaluation(folder / name, results, score_tables(results))
        runs.append(Run(name, folder / name))
    write_training_page(pages["training"], evaluations=runs, title="Training")
    return pages


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_pages(tmp_path_factory.mktemp("pages"))


#: How far the page goes beyond the window; the tables with their boxes; what juts out of the page outside of these.
MEASURE = """(() => {
  const page = document.documentElement;
  const boxes = [...document.querySelectorAll(".scroll")].map((box) => ({
    name: box.getAttribute("aria-label"), box: box.clientWidth, table: box.scrollWidth,
    left: box.getBoundingClientRect().left, right: box.getBoundingClientRect().right}));
  const beyond = [...document.querySelectorAll("body *")].filter(
    (each) => !each.closest(".scroll") && each.getBoundingClientRect().right > page.clientWidth + 0.5);
  return {page: page.scrollWidth, boxes, beyond: beyond.map((each) => each.outerHTML.slice(0, 90)),
          tables: document.querySelectorAll("table").length};
})()"""


#: Scrolls each wide table to its end, and returns where its first row's head is seen then, from the box's left.
SCROLL = """[...document.querySelectorAll(".scroll")].filter((box) => box.scrollWidth > box.clientWidth).map((box) => {
  box.scrollLeft = box.scrollWidth;
  const head = box.querySelector("tbody th").getBoundingClientRect(), left = box.getBoundingClientRect().left;
  return [head.left - left, head.right - left];
})"""


def measure(tab: Tab, page: Path, width: int) -> dict:
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    tab.open(page.as_uri())
    tab.wait_for("document.readyState === 'complete' && document.querySelector('#reading')", seconds=60)
    tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true })")
    return tab.evaluate(MEASURE)


NAMES = ("scores", "words", "comparison", "training")


@pytest.mark.parametrize("name", NAMES)
def test_on_1280_pixels_no_table_needs_to_be_scrolled(tab: Tab, pages: dict[str, Path], name: str) -> None:
    found = measure(tab, pages[name], 1280)
    assert found["page"] <= 1280 and found["beyond"] == [], json.dumps(found, indent=1)
    assert len(found["boxes"]) == found["tables"] > 0
    assert [box for box in found["boxes"] if box["table"] > box["box"]] == []


@pytest.mark.parametrize("name", NAMES)
def test_on_390_pixels_tables_scroll_in_their_boxes_and_keep_their_first_column(
    tab: Tab, pages: dict[str, Path], name: str
) -> None:
    found = measure(tab, pages[name], 390)
    assert found["page"] <= 390 and found["beyond"] == [], json.dumps(found, indent=1)
    assert all(box["left"] >= 0 and box["right"] <= 390 for box in found["boxes"])
    wide = [box for box in found["boxes"] if box["table"] > box["box"]]
    shown = tab.evaluate(SCROLL)
    assert len(shown) == len(wide) > 0 and all(0 <= left < right <= 0.6 * 390 for left, right in shown), shown
