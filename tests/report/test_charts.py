"""Learning curves as inline SVG."""

import re
from xml.etree import ElementTree

import pytest

from aurora_rl.report.charts import Series, line_chart

RISING = Series("reward", steps=tuple(range(40)), values=tuple(step / 40 for step in range(40)))


def test_chart_is_well_formed_and_says_in_words_what_it_shows():
    svg = ElementTree.fromstring(line_chart([RISING], title="A <run>: reward & more"))
    assert svg.get("role") == "img"
    assert svg[0].text == "A <run>: reward & more. reward from 0 to 0.975."


def test_chart_takes_its_colours_from_the_page():
    svg = line_chart([RISING, Series("bell", (1, 2), (0.1, 0.2))], title="reward")
    assert "var(--line-1)" in svg and "var(--line-2)" in svg
    assert not re.search(r"#0[0-9a-f]{5}", svg)


def test_chart_loads_nothing_and_leaves_the_pages_ids_and_styles_alone():
    svg = line_chart([RISING], title="reward")
    assert "http" not in svg and "<style" not in svg
    assert not re.search(r'id="(figure|axes|patch|line2d)', svg)


def test_label_of_a_reward_function_is_escaped_and_not_read_as_a_formula():
    svg = line_chart([Series("<b>$x$", (1,), (0.5,)), RISING], title="t")
    assert "<b>" not in svg
    assert "&lt;b&gt;$x$" in svg


def test_long_run_stays_small():
    long = Series("reward", steps=tuple(range(20_000)), values=tuple((7 * step % 13) / 13 for step in range(20_000)))
    assert len(line_chart([long], title="reward")) < 40_000


def test_same_chart_is_the_same_text():
    assert line_chart([RISING], title="reward") == line_chart([RISING], title="reward")


def test_chart_without_lines_is_an_error():
    with pytest.raises(ValueError, match="1 to 6"):
        line_chart([], title="reward")
