import pytest

from aurora_rl.tasks.prompts import answer_for
from reward_fns.category import authors_category_reward, category_reward


def _reward(reward_func, text, category):
    return reward_func(prompts=["p"], completions=[text], category=[category], uid=["a"])[0]


@pytest.mark.parametrize("category", ["drum", "hair-dryer", "emergency-car", "null"])
def test_the_rendered_answer_earns_one(category):
    assert _reward(category_reward, answer_for(category), category) == 1.0


def test_quotes_case_and_hyphens_do_not_count():
    assert _reward(category_reward, 'the target is the "Man". It is [SEG].', "man") == 1.0
    assert _reward(category_reward, "the target is the hair dryer. It is [SEG].", "hair-dryer") == 1.0


@pytest.mark.parametrize(
    "text", ["", "drum", "It is [SEG].", answer_for("bell"), answer_for("null"), "the target is the drum kit."]
)
def test_any_other_answer_earns_zero(text):
    assert _reward(category_reward, text, "drum") == 0.0


def test_naming_an_object_for_a_null_reference_earns_zero():
    assert _reward(category_reward, answer_for("drum"), "null") == 0.0


def test_the_last_claim_counts():
    assert _reward(category_reward, f"{answer_for('bell')} Wait. {answer_for('drum')}", "drum") == 1.0


def test_the_authors_reward_grades_from_zero_to_two():
    assert _reward(authors_category_reward, answer_for("drum"), "drum") == 2.0
    assert _reward(authors_category_reward, answer_for("bell"), "drum") == 1.0
    assert _reward(authors_category_reward, answer_for("null"), "null") == 0.0
    assert _reward(authors_category_reward, "It is [SEG].", "drum") == 0.0


def test_the_authors_reward_never_gives_a_hyphenated_category_its_due():
    assert _reward(authors_category_reward, answer_for("hair-dryer"), "hair-dryer") == 1.0
