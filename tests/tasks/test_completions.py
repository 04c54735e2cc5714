import doctest

import pytest

from aurora_rl.tasks import completions
from aurora_rl.tasks.completions import completion_text, normalise_category, parse_completion
from aurora_rl.tasks.prompts import answer_for, render_chain

STEPS = {
    "look": "I see a drum and a bell.",
    "listen": "I hear a drum, then a bell.",
    "read": "the object that sounds first is asked for.",
}
CHAIN = render_chain(STEPS, answer_for("drum"))


def test_docstring_examples_hold():
    results = doctest.testmod(completions)
    assert results.attempted and not results.failed


def test_a_rendered_chain_is_read_back():
    parsed = parse_completion(CHAIN)
    assert parsed.steps == {**STEPS, "answer": "the target is the drum. It is [SEG]."}
    assert parsed.has_all_steps
    assert parsed.category == "drum"
    assert parsed.targets == ("drum",)
    assert parsed.num_seg == 1
    assert parsed.ends_with_seg
    assert parsed.seen == ("drum", "bell")
    assert parsed.heard == ("drum", "bell")


def test_a_null_answer_is_the_category_null():
    parsed = parse_completion(render_chain(STEPS, answer_for("null")))
    assert parsed.category == "null"
    assert parsed.targets == ("null",)
    assert parsed.ends_with_seg


@pytest.mark.parametrize(
    ("claim", "category"),
    [
        ("the target is the hair-dryer. It is [SEG].", "hair dryer"),
        ("the target is an emergency-car. It is [SEG].", "emergency car"),
        ('the target is the "man". It is [SEG].', "man"),
        ('the target is the "man." It is [SEG].', "man"),
        ("the target is a “Grand_Piano”. It is [SEG].", "grand piano"),
        ("The target is drum [SEG].", "drum"),
        ("the target is the drum\nIt is [SEG].", "drum"),
        ("the target is the anvil. It is [SEG].", "anvil"),
    ],
)
def test_the_category_is_everything_up_to_the_end_of_its_sentence(claim, category):
    assert parse_completion(claim).category == category


def test_the_last_of_several_claims_is_the_answer():
    parsed = parse_completion("the target is the man. Wait, let me reconsider. the target is the dog. It is [SEG].")
    assert parsed.targets == ("man", "dog")
    assert parsed.category == "dog"


def test_a_claim_cut_off_by_the_length_limit_is_no_claim():
    # "mandolin" cut after "man" must not pass for the man.
    assert parse_completion("Answer: the target is the man").category is None
    assert parse_completion("Answer: the target is").category is None


@pytest.mark.parametrize("text", ["", "   \n", "It is", "[SEG", "Look:"])
def test_a_completion_without_claims_parses_to_nothing(text):
    parsed = parse_completion(text)
    assert parsed.category is None
    assert parsed.targets == ()
    assert parsed.num_seg == 0
    assert parsed.seen is None
    assert parsed.heard is None
    assert not parsed.has_all_steps
    assert not parsed.ends_with_seg


def test_every_seg_token_is_counted():
    assert parse_completion("It is [SEG]. It is [SEG].").num_seg == 2


@pytest.mark.parametrize("text", ["It is [SEG]", "It is [SEG]. Yes.", "It is [SEG]. It"])
def test_only_the_final_sentence_ends_a_completion(text):
    assert not parse_completion(text).ends_with_seg


def test_white_space_after_the_final_sentence_does_not_count():
    assert parse_completion("It is [SEG].\n ").ends_with_seg


def test_steps_out_of_order_missing_or_repeated_are_not_all_steps():
    look, listen, read, answer = CHAIN.split("\n")
    for lines in ([listen, look, read, answer], [look, listen, answer], [look, look, listen, read, answer]):
        assert not parse_completion("\n".join(lines)).has_all_steps


def test_a_label_inside_a_sentence_opens_no_step():
    assert list(parse_completion("Look: a sign says Read: me.\nListen: birds.").steps) == ["look", "listen"]


@pytest.mark.parametrize(
    ("step", "heard"),
    [
        ("I hear nothing.", ()),
        ("I hear no sound.", ()),
        ("I hear an owl.", ("owl",)),
        ("I hear a drum, a bell and a flute.", ("drum", "bell", "flute")),
        ("I hear a drum, then a bell, then a drum.", ("drum", "bell", "drum")),
        ("I hear a hair-dryer.", ("hair dryer",)),
        ("I hear a drum. Later I hear a bell.", ("drum", "bell")),
        ("A drum is played.", None),
    ],
)
def test_heard_categories_are_listed_in_order(step, heard):
    assert parse_completion(f"Listen: {step}\nRead: it.").heard == heard


def test_categories_seen_are_read_from_the_look_step_only():
    assert parse_completion("Listen: I see a drum.").seen is None


def test_a_category_that_holds_a_separator_word_stays_whole():
    assert parse_completion("Look: I see a sander and a panda.").seen == ("sander", "panda")


def test_spelling_variants_of_a_category_are_one():
    variants = ["Hair-Dryer", "hair_dryer", ' "hair  dryer" ', "'hair dryer'", "‘hair-dryer’"]
    assert {normalise_category(variant) for variant in variants} == {"hair dryer"}


def test_an_apostrophe_inside_a_category_stays():
    assert normalise_category("child's toy") == "child's toy"


def test_text_is_taken_from_every_form_of_completion():
    parts = [{"type": "text", "text": "It is "}, {"type": "text", "text": "[SEG]."}]
    assert completion_text("It is [SEG].") == "It is [SEG]."
    assert completion_text([{"role": "assistant", "content": "It is [SEG]."}]) == "It is [SEG]."
    assert completion_text([{"role": "assistant", "content": parts}]) == "It is [SEG]."
    assert completion_text([]) == ""


def test_the_text_of_several_turns_is_what_the_model_has_said_in_words() -> None:
    turns = [{"role": "assistant", "content": "Let me listen.", "tool_calls": [{"type": "function"}]}]
    turns += [{"role": "tool", "name": "peak", "content": "Answer: the target is the bell. It is [SEG]."}]
    assert (
        completion_text([*turns, *turns[:1], {"role": "assistant", "content": ""}]) == "Let me listen.\nLet me listen."
    )


# Chains that are taken back

REFLECTED = (
    "Look: I see a dog.\nListen: I hear a dog.\nRead: it is asked for.\nAnswer: the target is the dog.\n"
    "Wait, let me reconsider.\n"
    "Look: I see a drum.\nListen: I hear a bell.\nRead: it is asked for.\nAnswer: the target is the drum. It is [SEG]."
)


def test_a_chain_that_starts_anew_is_judged_by_its_new_steps():
    parsed = parse_completion(REFLECTED)
    assert parsed.has_all_steps
    assert (parsed.seen, parsed.heard, parsed.category) == (("drum",), ("bell",), "drum")
    assert parsed.targets == ("dog", "drum")


def test_what_stands_is_the_text_after_the_withdrawal():
    assert parse_completion(REFLECTED).standing.strip().startswith("Look: I see a drum.")
    plain = "Look: I see a drum.\nAnswer: the target is the drum. It is [SEG]."
    assert parse_completion(plain).standing == plain


def test_a_withdrawal_within_a_step_keeps_the_steps_before_it():
    parsed = parse_completion("Look: I see a drum.\nListen: I hear a bell. Wait, I hear a dog.\nRead: it.\nAnswer: x.")
    assert parsed.has_all_steps
    assert parsed.seen == ("drum",)


def test_people_who_wait_take_nothing_back():
    text = "Look: people wait for a bus.\nListen: I hear a bus.\nRead: it.\nAnswer: the target is the bus. It is [SEG]."
    assert parse_completion(text).standing == text


@pytest.mark.parametrize(
    ("text", "category"), [("It is hair-dryer [SEG].", "hair dryer"), ("It is null [SEG].", "null")]
)
def test_the_teachers_answer_names_its_category(text, category):
    assert parse_completion(text).category == category


def test_the_teachers_form_inside_a_chain_is_no_claim():
    assert parse_completion("Answer: the target is the drum. It is on the left [SEG].").targets == ("drum",)
