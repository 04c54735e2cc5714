import pytest

from reward_fns.perception import perception_reward


def _reward(look, listen, *, seen=("drum", "bell"), heard=("drum", "bell")):
    text = f"Look: {look}\nListen: {listen}\nRead: asked for."
    return perception_reward(prompts=["p"], completions=[text], seen=[seen], heard=[heard])[0]


def test_the_true_lists_earn_one():
    assert _reward("I see a drum and a bell.", "I hear a drum, then a bell.") == 1.0


def test_the_order_counts_for_what_is_heard_only():
    # Heard in the wrong order: one of two in order, F1 = 1/2.
    assert _reward("I see a bell and a drum.", "I hear a drum, then a bell.") == 1.0
    assert _reward("I see a drum and a bell.", "I hear a bell, then a drum.") == pytest.approx((1 + 0.5) / 2)


def test_naming_everything_does_not_pay():
    # Seen: 2 of 4 claims true, all found: F1 = 2·2 / (4 + 2). Heard: exact.
    score = _reward("I see a drum, a bell, a flute and a cat.", "I hear a drum, then a bell.")
    assert score == pytest.approx((2 / 3 + 1) / 2)


def test_naming_one_thing_twice_does_not_pay():
    # F1 = 2·1 / (2 + 2).
    assert _reward("I see a drum and a drum.", "I hear a drum, then a bell.") == pytest.approx((0.5 + 1) / 2)


def test_hearing_nothing_in_a_silent_clip_is_right():
    assert _reward("I see a drum and a bell.", "I hear nothing.", heard=()) == 1.0
    assert _reward("I see a drum and a bell.", "I hear a drum.", heard=()) == 0.5
    assert _reward("I see a drum and a bell.", "I hear nothing.") == 0.5


def test_a_claim_left_out_counts_zero():
    assert _reward("A drum.", "I hear nothing.", heard=()) == 0.5


def test_it_does_not_apply_where_the_truth_is_unknown():
    assert _reward("I see a drum.", "I hear a drum.", seen=None) is None
    assert _reward("I see a drum.", "I hear a drum.", heard=None) is None
