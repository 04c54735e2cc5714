import pytest

from aurora_rl.data.tool_table import all_sets
from aurora_rl.evaluation.tool_sets import (
    ChosenSet,
    accuracies,
    best_fixed_set,
    call_shares,
    choice_counts,
    gained_share,
)


def row(question, chosen, *right):
    return ChosenSet(question, {each: each in right for each in all_sets(2)}, chosen)


#: Of two tools: rescued by 0, broken by 1, right alone and kept, never right and unreadable.
ROWS = [row("a", (0,), (0,)), row("b", (1,), (), (0,)), row("c", (), (), (0,)), row("d", None)]


def test_choices_are_compared_with_those_that_need_no_policy():
    means = {name: sum(values) / len(values) for name, values in accuracies(ROWS).items()}
    assert means == {
        "the policy's tools": 0.5,
        "no tool": 0.5,
        "all tools": 0.0,
        "random tools": (1 + 2 + 2 + 0) / 16,
        "best fixed set": 0.75,
        "best of each question": 0.75,
    }
    assert best_fixed_set(ROWS) == (0,)
    assert gained_share(ROWS) == 0.0 and gained_share([ROWS[0], ROWS[2]]) == 1.0


def test_rescues_breaks_and_calls_are_counted():
    counts = choice_counts(ROWS)
    assert counts == pytest.approx({"readable": 0.75, "rescued": 0.25, "broken": 0.25, "tools a question": 0.5})
    assert call_shares(ROWS) == [0.25, 0.25]
