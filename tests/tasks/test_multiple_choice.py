import dataclasses

import pytest

from aurora_rl.data.sample import AVSample
from aurora_rl.tasks.completions import parse_completion
from aurora_rl.tasks.matchers import match_choice
from aurora_rl.tasks.multiple_choice import ChoiceInWords, MultipleChoice
from reward_fns.choice import choice_accuracy_reward, choice_format_reward

CHOICES = ("drum", "hair-dryer", "bell", "air horn")
REASONING = "Look: I see a bell and a drum.\nListen: I hear a bell."
SAMPLE = AVSample(
    uid="abc_sounding",
    row=0,
    split="train",
    media_id="abc",
    category="bell",
    reference="Which one sounds?",
    fps=1.0,
    frame_paths=(),
    audio_path=None,
    mask_paths=(),
    chain=REASONING,
    seen=("drum", "bell"),
    heard=("bell",),
    choices=CHOICES,
    answer="bell",
)
TASK = MultipleChoice()


@pytest.mark.parametrize(
    "marked", ["C", "c", "C.", "(C)", "C)", " C: ", "C. bell", "(C) Bell.", "bell", "the bell.", "BELL"]
)
def test_a_letter_and_the_options_text_are_read(marked):
    assert match_choice(marked, CHOICES) == 2


@pytest.mark.parametrize(
    "marked",
    ["", ".", "This is a bell", "a bell", "A bell", "C. drum", "C or A", "A C", "CC", "E", "Z. bell", "bell, drum",
     "the", "C because it rings", "<answer>C</answer>", "(", "ⅽ", "Ⓒ", "\0", "C\nA", "not C", "C.D."],
)  # fmt: skip
def test_anything_else_is_unreadable(marked):
    assert match_choice(marked, CHOICES) is None


def test_a_letter_is_the_options_letter_even_where_an_option_is_a_letter():
    assert match_choice("A", ["B", "A"]) == 0


@pytest.mark.parametrize("task", [TASK, ChoiceInWords()])
def test_a_target_is_read_back_with_every_score(task):
    answer = task.parse(task.target(SAMPLE).learned)
    assert task.is_right(answer, SAMPLE)
    assert task.text_scores(answer, SAMPLE) == {"format": 1, "readable": 1, "accuracy": 1, "see": 1, "hear": 1}


def test_a_target_is_short_and_ends_with_the_letter():
    assert TASK.target(SAMPLE).learned == f"{REASONING}\nAnswer: C"
    assert TASK.target(dataclasses.replace(SAMPLE, chain=None)).learned == "Answer: C"
    assert ChoiceInWords().target(SAMPLE).learned == f"{REASONING}\nAnswer: bell"


@pytest.mark.parametrize(
    ("text", "value", "has_form"),
    [
        (f"{REASONING}\nAnswer: C", "c", True),
        (f"{REASONING}\nAnswer: hair_dryer", "hair dryer", True),
        (f"{REASONING}\nAnswer:", None, False),
        ("Answer: C", "c", False),
        ("C", None, False),
        ("", None, False),
        (f"{REASONING}\nAnswer: C\nAnswer: C", None, False),  # two answer tags
        (f"Answer: A\n{REASONING}\nAnswer: C", None, False),
        (f"{REASONING}\nThe Answer: C", None, False),
        (f"{REASONING}\nAnswer: C\nListen: I hear a drum.", "c listen: i hear a drum.", False),
        (f"Well.\n{REASONING}\nAnswer: C", "c", False),
        ("Listen: I hear a bell.\nLook: I see a bell.\nAnswer: C", "c", False),
        (f"{REASONING}\nRead: the bell.\nAnswer: C", "c", False),
    ],
)
def test_malformed_completions_are_data(text, value, has_form):
    answer = TASK.parse(text)
    assert (answer.value, answer.has_form) == (value, has_form)
    scores = TASK.text_scores(answer, SAMPLE)
    assert scores["format"] == has_form
    assert scores["accuracy"] == TASK.is_right(answer, SAMPLE) == (value == "c")


def test_what_is_seen_and_heard_is_scored_where_it_is_known():
    answer = TASK.parse("Look: I see a drum.\nListen: I hear a bell.\nAnswer: B")
    assert TASK.text_scores(answer, SAMPLE) == {"format": 1, "readable": 1, "accuracy": 0, "see": 0, "hear": 1}
    unknown = dataclasses.replace(SAMPLE, seen=None, heard=None)
    assert TASK.text_scores(answer, unknown)["see"] is None


def test_the_prompt_holds_the_lettered_options_as_text_from_outside():
    (message,) = TASK.messages(SAMPLE, instruction="Choose. {reference}")
    (part,) = message["content"]
    assert part["text"] == "Choose. Which one sounds?\nA. drum\nB. hair-dryer\nC. bell\nD. air horn"
    assert part["text"].own == "Choose. "
    with pytest.raises(ValueError, match="no '{reference}' field"):
        TASK.messages(SAMPLE, instruction="Choose.")


@pytest.mark.parametrize("changes", [{"choices": None}, {"choices": ()}, {"choices": tuple(map(str, range(27)))}])
def test_a_row_without_options_is_named(changes):
    with pytest.raises(ValueError, match="abc_sounding#0 has .* choices"):
        TASK.messages(dataclasses.replace(SAMPLE, **changes))


@pytest.mark.parametrize("answer", [None, "cat"])
def test_a_row_with_an_unknown_answer_is_named(answer):
    with pytest.raises(ValueError, match="abc_sounding#0 has the answer"):
        TASK.target(dataclasses.replace(SAMPLE, answer=answer))


def test_answers_of_another_task_are_refused():
    with pytest.raises(TypeError, match="ParsedCompletion"):
        TASK.is_right(parse_completion("It is a bell."), SAMPLE)


class Tags(MultipleChoice):
    """Answers between tags: other marks, nothing else."""

    def write(self, reasoning, answer):
        return f"<think>{reasoning}</think><answer>{answer}</answer>"

    def read(self, text, reasoning):
        marked = text.partition("<answer>")[2].removesuffix("</answer>")
        return marked or None, text.startswith("<think>")


def test_a_derived_task_writes_and_reads_other_marks():
    text = Tags().target(SAMPLE).learned
    answer = Tags().parse(text)
    assert text.endswith("<answer>C</answer>")
    assert Tags().is_right(answer, SAMPLE)
    columns = {"choices": [CHOICES], "answer": ["bell"], "answers": [answer]}
    assert choice_accuracy_reward([None], [text], **columns) == choice_format_reward([None], [text], **columns) == [1.0]


def test_rewards_read_completions_alone_as_multiple_choice():
    texts = [f"{REASONING}\nAnswer: C", "Answer: bell", "Answer: A", "This is a bell"]
    columns = {"choices": [CHOICES] * 4, "answer": ["bell"] * 4}
    assert choice_accuracy_reward([None] * 4, texts, **columns) == [1.0, 1.0, 0.0, 0.0]
    assert choice_format_reward([None] * 4, texts) == [1.0, 0.0, 0.0, 0.0]
