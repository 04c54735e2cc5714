import math

import pytest
import torch

from aurora_rl.tasks.prompts import answer_for, render_chain
from reward_fns.reasoning_consistency import reasoning_consistency_reward

LOUD, SILENT = -20.0, -80.0
PLAIN = "the sounding object"


def _mask(*, rows=slice(4, 5), columns=slice(4, 5)):
    mask = torch.zeros(2, 9, 9, dtype=torch.bool)
    mask[:, rows, columns] = True
    return mask


CENTRE, LEFT, RIGHT = _mask(), _mask(columns=slice(0, 1)), _mask(columns=slice(8, 9))
TOP, BOTTOM = _mask(rows=slice(0, 1)), _mask(rows=slice(8, 9))
EMPTY = torch.zeros(2, 9, 9, dtype=torch.bool)


def _chain(answer="drum", *, look="I see a drum and a bell.", listen="I hear a drum.", read="the one that sounds."):
    return render_chain({"look": look, "listen": listen, "read": read}, answer_for(answer))


def _reward(text, *, reference=PLAIN, pred_masks=CENTRE, loudness=LOUD):
    return reasoning_consistency_reward(
        prompts=["p"], completions=[text], reference=[reference], pred_masks=[pred_masks], loudness_dbfs=[loudness]
    )[0]


def test_a_consistent_chain_earns_one():
    assert _reward(_chain()) == 1.0
    assert _reward(_chain(), reference="the object on the left", pred_masks=LEFT) == 1.0


@pytest.mark.parametrize("text", ["", answer_for("drum"), "Answer: the target is the drum. It is [SEG].", "Look:"])
def test_a_completion_without_a_chain_earns_zero(text):
    assert _reward(text) == 0.0


def test_an_answer_named_nowhere_before_fails_one_check_of_three():
    assert _reward(_chain("flute")) == pytest.approx(2 / 3)


def test_the_answer_is_found_as_a_whole_word_in_any_spelling():
    assert _reward(_chain("man", look="I see a mandolin.", listen="I hear a mandolin.")) == pytest.approx(2 / 3)
    assert _reward(_chain("hair-dryer", look="I see a hair dryer.")) == 1.0
    assert _reward(_chain("drum", look="I see two drums.")) == 1.0


def test_a_null_answer_needs_no_name():
    # Sound and one target apply.
    assert _reward(_chain("null")) == 1.0
    assert _reward(_chain("null", listen="I hear nothing.")) == 0.5


@pytest.mark.parametrize(
    ("word", "agreeing", "opposite"),
    [
        ("the object on the left", LEFT, RIGHT),
        ("the leftmost object", LEFT, RIGHT),
        ("The object being played by the man on the far left.", LEFT, RIGHT),
        ("the left one of those making a sound", LEFT, RIGHT),
        ("the object on the left of the image", LEFT, RIGHT),
        ("the object on the right", RIGHT, LEFT),
        ("the object on the right-hand side", RIGHT, LEFT),
        ("the object at the top", TOP, BOTTOM),
        ("the object at the bottom", BOTTOM, TOP),
        ("the object in the centre", CENTRE, LEFT),
        ("The object played by the man in the middle.", CENTRE, RIGHT),
        ("The biggest drum.", _mask(columns=slice(0, 9)), None),
    ],
)
def test_spatial_words_of_the_reference_are_held_against_the_mask(word, agreeing, opposite):
    assert _reward(_chain(), reference=word, pred_masks=agreeing) == 1.0
    assert _reward(_chain(), reference=word, pred_masks=opposite) == 0.75


@pytest.mark.parametrize(
    "reference",
    [
        "The sounding object on the right of the violin.",
        "The object to the right of the sounding woman.",
        "The object making a sound by being played by the right hand of the man.",
        "The object heard right after the bell.",
        "The object that is played in the middle of the song.",
        "The object making the lowest sound.",
        "The object near the man wearing a striped top.",
        "the middle-aged man",
        "The sounding object on the left of the biggest rock.",
    ],
)
def test_words_that_place_nothing_in_the_frame_are_not_held_against_the_mask(reference):
    # Without a place check a failing name check leaves 2 of 3.
    assert _reward(_chain("flute"), reference=reference, pred_masks=LEFT) == pytest.approx(2 / 3)


def test_the_left_one_of_two_may_stand_in_the_middle():
    just_right_of_centre = _mask(columns=slice(5, 6))  # x = 5.5 / 9 = 0.61
    assert _reward(_chain(), reference="the object on the left", pred_masks=just_right_of_centre) == 1.0


def test_a_speck_is_not_the_largest_object():
    # 1 pixel of 81 is 1.2 %; 2 are 2.5 %.
    assert _reward(_chain(), reference="The biggest drum.", pred_masks=CENTRE) == 0.75
    assert _reward(_chain(), reference="The biggest drum.", pred_masks=_mask(columns=slice(4, 6))) == 1.0


def test_the_place_claimed_for_another_object_is_not_held_against_the_mask():
    look = "I see a drum on the left and a bell on the right."
    assert _reward(_chain("drum", look=look), pred_masks=LEFT) == 1.0
    assert _reward(_chain("drum", look=look), pred_masks=RIGHT) == 0.75


def test_a_read_step_that_turns_the_reference_round_halves_the_place_check():
    text = _chain(read="the object on the right is asked for.")
    assert _reward(text, reference="the object on the left", pred_masks=LEFT) == pytest.approx((3 + 0.5) / 4)


def test_a_place_where_nothing_is_predicted_fails():
    assert _reward(_chain(), reference="the object on the left", pred_masks=EMPTY) == 0.75
    assert _reward(_chain(), reference="the object on the left", pred_masks=None) == 0.75


def test_a_missing_mask_does_not_count_where_no_place_is_said():
    assert _reward(_chain(), pred_masks=None) == 1.0


@pytest.mark.parametrize("listen", ["I hear nothing.", "I hear no sound.", "The clip is silent."])
def test_a_claim_of_silence_is_held_against_the_loudness(listen):
    assert _reward(_chain(listen=listen), loudness=SILENT) == 1.0
    assert _reward(_chain(listen=listen), loudness=-math.inf) == 1.0
    assert _reward(_chain(listen=listen), loudness=LOUD) == pytest.approx(2 / 3)


@pytest.mark.parametrize("listen", ["I hear a drum.", "A drum is playing.", "There is a sound of drums."])
def test_a_claim_of_sound_is_held_against_the_loudness(listen):
    assert _reward(_chain(listen=listen), loudness=LOUD) == 1.0
    assert _reward(_chain(listen=listen), loudness=SILENT) == pytest.approx(2 / 3)


@pytest.mark.parametrize("loudness", [LOUD, SILENT])
def test_saying_nothing_about_the_sound_fails(loudness):
    assert _reward(_chain(listen="Hm."), loudness=loudness) == pytest.approx(2 / 3)
    without_listen = _chain().replace("Listen: I hear a drum.\n", "")
    assert _reward(without_listen, loudness=loudness) == pytest.approx(2 / 3)


def test_a_missing_look_step_fails_even_where_another_names_the_answer():
    without_look = _chain().replace("Look: I see a drum and a bell.\n", "")
    assert _reward(without_look) == pytest.approx(2 / 3)
    assert _reward(without_look.replace("the target is the drum", "there is no such target")) == pytest.approx(2 / 3)


def test_two_different_final_targets_fail():
    assert _reward(_chain(read="the target is the bell.")) == pytest.approx(2 / 3)
    assert _reward(_chain(read="the target is the drum.")) == 1.0


def test_a_target_taken_back_is_not_final():
    text = _chain(read="the target is the bell. Wait, let me reconsider.")
    assert _reward(text) == 1.0


def test_a_truncated_chain_names_no_target():
    # Neither an answer to be named nor a final target; only the sound holds.
    text = _chain().split(" drum. It is")[0]
    assert _reward(text) == pytest.approx(1 / 3)
