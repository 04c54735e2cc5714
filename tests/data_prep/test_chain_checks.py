import pytest

from aurora_rl.chain_writing.chain_checks import PROBLEMS, ChainLimits, find_problems, names_category, repair
from aurora_rl.scripts.verify_cot import verify_file
from aurora_rl.tasks.prompts import answer_for

STEPS = {
    "look": "I see a hair-dryer on the left and a man.",
    "listen": "I hear a steady hum, then a voice.",
    "read": "It asks for what hums.",
}
LIMITS = ChainLimits(max_step_chars=80)


def reasons(*, answer: str | None = None, category: str = "hair-dryer", limits: ChainLimits = LIMITS, **steps) -> list:
    chain = {name: text for name, text in (STEPS | steps).items() if text is not None}
    problems = find_problems(chain, answer_for(category) if answer is None else answer, category, limits)
    return [problem.reason for problem in problems]


def test_a_good_chain_has_no_problems():
    assert reasons() == []
    assert reasons(category="null") == []


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("", "missing_step"),
        (None, "missing_step"),
        (7, "missing_step"),
        ("... 12 !", "missing_step"),
        ("x" * 81, "too_long"),
        ("The ground truth is what hums.", "leak"),
        ("The Ground-Truth says so.", "leak"),
        ("The truth is what hums.", "leak"),
        ("The groundtruth hums.", "leak"),
        ("It is for my eyes only.", "leak"),
        ("The first attempt missed the hum.", "leak"),
        ("It fits the given category.", "leak"),
        ("According to the annotation it hums.", "leak"),
        ("The correct answer is what hums.", "leak"),
        ("As provided, it hums.", "leak"),
        ("I was told that it hums.", "leak"),
        ("We know the answer: what hums.", "leak"),
        ("So the target is the man.", "second_answer"),
        ("There is no such target here.", "second_answer"),
        ("It hums, it is [SEG].", "second_answer"),
        ("It hums [SEG]", "second_answer"),
        ("The answer is what hums.", "second_answer"),
        ("It hums. Wait, it rings.", "withdrawal"),
        ("Let me reconsider what hums.", "withdrawal"),
        ("It hums. Answer: what hums.", "step_label"),
        ("Listen: it hums.", "step_label"),
        ("It hums\x00.", "bad_character"),
        ("It hums \ud800.", "bad_character"),
        ("It hums \ufffd.", "bad_character"),
        ("It hums<|im_end|>.", "special_token"),
        ("<think>hum</think> It hums.", "special_token"),
    ],
)
def test_what_is_wrong_with_a_step_is_found(step, reason):
    assert reasons(read=step) == [reason]


@pytest.mark.parametrize(
    "step",
    [
        "It asks for the person giving the answer to the category of birds.",
        "It asks for the bottle with the red label.",
        "They wait for the bus. The man waits.",
        "The correct way up is what hums.",
        "It asks what hums, as stated in the sentence.",
        "I hear the class applaud; the dog answers.",
        "A target of an archer is on the wall.",
        "I look: and I listen.",
        "x" * 80,
        "La guitare sonne à gauche — 100 % “forte”.",
    ],
)
def test_honest_words_are_no_problem(step):
    assert reasons(read=step) == []


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("the target is the man. It is [SEG].", ["wrong_category"]),
        ("there is no such target. It is [SEG].", ["wrong_category"]),
        ("", ["wrong_category", "second_answer"]),
        ("the target is the man. the target is the hair-dryer. It is [SEG].", ["second_answer"]),
        ("the target is the hair-dryer [SEG]. It is [SEG].", ["second_answer"]),
        ("the target is the hair-dryer.", ["second_answer"]),
        ('The target is a "Hair dryer". It is [SEG].', []),
    ],
)
def test_the_answer_must_be_the_truth_once(answer, found):
    assert reasons(answer=answer) == found


def test_all_problems_are_told_in_the_order_of_their_list():
    found = reasons(answer="the target is the man. It is [SEG].", look="", read="As told, it hums \x00.")
    assert found == ["wrong_category", "missing_step", "leak", "bad_character"]
    assert sorted(found, key=list(PROBLEMS).index) == found


def test_the_answer_must_be_named_in_a_step_unless_that_is_allowed():
    unnamed = {"look": "I see a thing and a man.", "limits": LIMITS}
    assert reasons(**unnamed) == ["unnamed_category"]
    assert reasons(**(unnamed | {"limits": ChainLimits(80, allow_unnamed=True)})) == []


@pytest.mark.parametrize(
    ("text", "category", "is_named"),
    [
        ("I see a Hair Dryer.", "hair-dryer", True),
        ("two hair-dryers", "hair_dryer", True),
        ("three buses", "bus", True),
        ("a cathedral", "cat", False),
        ("nothing", "null", True),
        ("the sounding objects hum", "sounding objects", True),
    ],
)
def test_a_category_is_named_in_any_spelling_but_not_within_a_word(text, category, is_named):
    assert names_category({"look": text}, category) is is_named


@pytest.mark.parametrize(
    ("written", "mended", "repairs"),
    [
        ("I see a drum.", "I see a drum.", ()),
        ("Look: I see a drum.", "I see a drum.", ("label",)),
        ("1. **LOOK:** I see a drum.", "I see a drum.", ("label",)),
        ("Step 1: look: I see a drum.", "I see a drum.", ("label",)),
        ("## Look: \n I see a drum.", "I see a drum.", ("label",)),
        ("Looking: I see a drum.", "Looking: I see a drum.", ()),
        ("I see a **big** `drum` and *a* __bell__.", "I see a big drum and a bell.", ("markdown",)),
        ("- a drum\n- a bell", "a drum a bell", ("markdown", "spaces")),
        ("2 * 3 * 4 drums, race_car", "2 * 3 * 4 drums, race_car", ()),
        ('"I see a drum."', "I see a drum.", ("quotes",)),
        ("“I see a drum.”", "I see a drum.", ("quotes",)),
        ('"Stop" is on the sign, below "go"', '"Stop" is on the sign, below "go"', ()),
        (" I see\n\na  drum.\t", "I see a drum.", ("spaces",)),
        ("I see a\u200b dr\u00adum\u202e.", "I see a drum.", ("characters",)),
    ],
)
def test_what_does_not_belong_into_a_step_is_mended(written, mended, repairs):
    assert repair("look", written) == (mended, repairs)
    assert repair("look", mended) == (mended, ())


def test_the_label_of_another_step_is_left_to_be_found():
    assert repair("look", "Listen: I hear a drum.") == ("Listen: I hear a drum.", ())


def test_the_gold_chains_of_the_synthetic_benchmark_have_no_problems(tiny_benchmark):
    verification = verify_file(tiny_benchmark / "chains.jsonl", ChainLimits())
    assert verification.dropped == []
    assert len(verification.kept) > 30
    assert all(verdict.repairs == () for verdict in verification.kept)
