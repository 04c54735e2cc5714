"""Rules of benchmarks, held to what they do with MMAU-mini's own questions, and the tasks that score by all of them."""

from pathlib import Path

import pytest

from aurora_rl.data.sample import AVSample
from aurora_rl.tasks.matchers import MATCHERS, count_right, match_choice
from aurora_rl.tasks.think_answer import PlannedAnswer, ThinkAnswer
from recipes.count_matchers import read_questions
from reward_fns.choice import choice_accuracy_reward

MMAU = Path(__file__).parents[1] / "data" / "mmau_test_mini.json.xz"


@pytest.fixture(scope="module")
def questions() -> list[tuple[list[str], int]]:
    """Options and the index of the right one, of the 1,000 questions."""
    return read_questions(MMAU)


@pytest.mark.parametrize(
    ("name", "letter", "letter_and_text", "sentence", "wrong"),
    [
        ("strict", 1_000, 1_000, 0, 2),
        ("mmau", 2, 967, 907, 9),
        ("mmsu", 1_000, 1, 1, 151),
        ("echoink", 1_000, 1_000, 75, 96),
    ],
)
def test_what_the_rules_take_for_right(questions, name, letter, letter_and_text, sentence, wrong):
    assert count_right(MATCHERS[name], questions) == {
        "bare_letter": letter,
        "letter_and_text": letter_and_text,
        "the_answer_is": sentence,
        "wrong_choice_right": wrong,
    }


@pytest.mark.parametrize("text", ["No, it is not present.", "Calling it 'fairly pointless'.", "the bell"])
def test_an_options_own_text_is_readable_with_its_full_stop_and_quotes(text):
    assert match_choice(text, ["drum", text]) == match_choice(f"B. {text}", ["drum", text]) == 1


def test_an_option_that_is_there_twice_is_right_at_both_places():
    assert MATCHERS["strict"]("C", ["Man", "Woman", "Man"], 0)
    assert not MATCHERS["strict"]("B", ["Man", "Woman", "Man"], 0)


def sample(**fields) -> AVSample:
    values = {"uid": "a", "row": 0, "split": "train", "media_id": "a", "category": "", "fps": 1.0, "frame_paths": ()}
    question = {"reference": "What sounds?", "choices": ("drum", "bell"), "answer": "bell", "audio_path": "a.wav"}
    return AVSample(**{**values, **question, **fields})


def test_scores_and_reward_take_a_repeated_option_as_the_strict_rule_does():
    row = sample(choices=("Man", "Woman", "Man"), answer="Man")
    for letter, is_right in (("A", 1.0), ("B", 0.0), ("C", 1.0)):
        text = f"<think>a</think><answer>{letter}</answer>"
        assert ThinkAnswer().text_scores(ThinkAnswer().parse(text), row)["accuracy"] == is_right
        answers = [ThinkAnswer().parse(text)]
        assert choice_accuracy_reward([""], [text], choices=[row.choices], answer=["Man"], answers=answers) == [
            is_right
        ]


def test_question_and_target_have_the_published_form():
    task = ThinkAnswer()
    assert task.question(sample()) == "What sounds? Options:\nA. drum\nB. bell"
    assert task.target(sample(chain=" It rings. ")).learned == "<think>It rings.</think>\n<answer>B</answer>"
    assert task.target(sample()).learned == "<answer>B</answer>"


@pytest.mark.parametrize(
    ("text", "accuracy", "readable", "has_form"),
    [
        ("<think>It rings.</think>\n<answer>B</answer>", 1, 1, 1),
        ("<think>It rings.</think><answer> B. bell </answer>\n", 1, 1, 1),
        ("<answer>B</answer>", 1, 1, 0),
        ("<think> </think><answer>B</answer>", 1, 1, 0),
        ("So: <think>It rings.</think><answer>B</answer>", 1, 1, 0),
        ("<think>a</think> and <answer>B</answer>", 1, 1, 0),
        ("<think>a</think><answer>B</answer><answer>B</answer>", 0, 0, 0),
        ("<think><answer>B</answer></think>", 1, 1, 0),
        ("<think>a</think><answer>This is a bell</answer>", 0, 0, 1),
        ("<think>a</think><answer></answer>", 0, 0, 0),
        ("<answer>B</answer><think>a</think>", 1, 1, 0),
        ("B", 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_a_completion_is_read_strictly(text, accuracy, readable, has_form):
    scores = ThinkAnswer().text_scores(ThinkAnswer().parse(text), sample())
    assert (scores["accuracy"], scores["readable"], scores["format"]) == (accuracy, readable, has_form)


def test_all_rules_stand_side_by_side():
    """A letter in its tag is right for three of them, and no word of the option for MMAU."""
    task = ThinkAnswer()
    scores = task.text_scores(task.parse("<think>a</think><answer>B</answer>"), sample())
    assert [scores[f"accuracy{name}"] for name in ("", "_mmau", "_mmsu", "_echoink")] == [1, 0, 1, 1]
    unmarked = task.text_scores(task.parse("What rings is a bell"), sample())
    assert [unmarked[f"accuracy{name}"] for name in ("", "_mmau", "_mmsu", "_echoink")] == [0, 1, None, 0]
    assert set(task.meanings) == set(scores) - {"format"}


PLANNED = (
    "<think><planning>Listen.</planning><caption>It rings.</caption>\n<reasoning>So a bell.</reasoning>"
    "<summary>A bell.</summary></think><answer>B</answer>"
)


@pytest.mark.parametrize(
    ("text", "has_form"),
    [
        (PLANNED, True),
        (PLANNED.replace("Listen.", " "), False),
        (PLANNED.replace("<planning>", "Well, <planning>"), False),
        (PLANNED.replace("caption", "summary"), False),
        (PLANNED.replace("<summary>A bell.</summary>", ""), False),
        (PLANNED.replace("</think>", "") + "</think>", False),
        ("<think>It rings.</think><answer>B</answer>", False),
    ],
)
def test_planned_reasoning_has_four_parts_in_order(text, has_form):
    assert PlannedAnswer().parse(text).has_form is has_form
