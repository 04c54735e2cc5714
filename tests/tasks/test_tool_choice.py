import json

import pytest

from aurora_rl.data.sample import AVSample
from aurora_rl.data.tool_table import all_sets, set_text
from aurora_rl.tasks.multiple_choice import MultipleChoice
from aurora_rl.tasks.tool_choice import ToolChoice, chosen_tools

TASK = ToolChoice()


def question(*right: tuple[int, ...], count: int = 3) -> AVSample:
    """A question about which the reasoner is right with these sets."""
    rights = {set_text(chosen): chosen in right for chosen in all_sets(count)}
    extra = {"tools": [[f"tool{number}", "Tell something"] for number in range(count)], "rights": rights}
    media = {"fps": 1.0, "frame_paths": (), "audio_path": None, "choices": ("A4", "C4"), "answer": "A4"}
    return AVSample("a", 0, "train", "a", "A4", "Which note?", **media, extra=json.dumps(extra))


@pytest.mark.parametrize(
    ("text", "tools"),
    [
        ("<answer>0,2</answer>", (0, 2)),
        (" <answer> 2 , 0 </answer>\n", (0, 2)),
        ("<answer></answer>", ()),
        ("<answer>1,1</answer>", None),
        ("<answer>3</answer>", None),  # there are three tools, 0 to 2
        ("<answer>pitch</answer>", None),
        ("0,2", None),
        ("I take <answer>0</answer>", None),
        ("<answer>0</answer><answer>1</answer>", None),
        ("<answer>0,</answer>", None),
        ("<answer>0", None),
        ("", None),
    ],
)
def test_a_set_is_read_strictly(text: str, tools: tuple[int, ...] | None) -> None:
    assert chosen_tools(TASK.parse(text), question()) == tools


def test_the_question_lists_options_and_tools_by_number() -> None:
    assert TASK.question(question(count=2)).splitlines() == [
        *("Which note?", "A. A4", "B. C4", "Tools:", "0. tool0: Tell something", "1. tool1: Tell something"),
    ]


def test_an_answer_is_right_if_the_reasoner_is_with_its_tools() -> None:
    row = question((1,), (1, 2))
    assert TASK.text_scores(TASK.parse("<answer>1</answer>"), row) == {
        "readable": 1.0,
        "accuracy": 1.0,
        "tools": pytest.approx(1 / 3),
    }
    assert not TASK.is_right(TASK.parse("<answer>0,1</answer>"), row)
    unreadable = {"readable": 0.0, "accuracy": 0.0, "tools": None}
    assert TASK.text_scores(TASK.parse("none of them"), question((), (0,))) == unreadable


def test_a_target_is_a_readable_set_that_the_table_does_not_change() -> None:
    targets = [TASK.target(row).learned for row in (question(), question((0,), (1,)))]
    assert targets[0] == targets[1] and TASK.parse(targets[0]).tools is not None


def test_a_row_without_a_table_and_an_answer_of_another_task_are_refused() -> None:
    row = question()
    with pytest.raises(ValueError, match="sample a#0 has no entry of a tool table"):
        TASK.check_truth(AVSample.from_row({**row.to_row(), "extra": json.dumps({"tools": [["a", "b"]]})}))
    with pytest.raises(TypeError, match="ChoiceAnswer"):
        chosen_tools(MultipleChoice().parse("Answer: A"), row)
