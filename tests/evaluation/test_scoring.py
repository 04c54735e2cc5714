"""Scores of one answer, by hand. The metrics themselves are tested in test_metrics.py."""

import dataclasses
import math

import cv2
import numpy as np
import pytest
import torch

from aurora_rl.data.run_lengths import decode_masks
from aurora_rl.data.sample import AVSample
from aurora_rl.evaluation.measures import MEASURES
from aurora_rl.evaluation.scoring import score_answer, score_completion, score_masks, score_rollout
from aurora_rl.tasks.multiple_choice import MultipleChoice
from aurora_rl.tasks.reference_boxes import ReferenceBoxes
from tests.row_results import answered

DRUM = AVSample(
    uid="clip_0_1000_drum_1",
    row=7,
    split="test_s",
    media_id="clip_0_1000",
    category="drum",
    reference="The object that sounds first.",
    fps=1.0,
    frame_paths=("0.jpg",),
    audio_path="audio.wav",
    mask_paths=("00000.png",),
    reference_type="audio order",
    seen=("drum", "emergency-car"),
    heard=("drum", "emergency-car"),
)
TEXT = (
    "Look: I see an emergency-car and a drum.\nListen: I hear a drum, then an emergency-car.\n"
    "Read: the object that sounds first is asked for.\nAnswer: the target is the drum. It is [SEG]."
)
TOP_HALF = torch.tensor([[[True, True], [False, False]]])  # (1, 2, 2)
EMPTY = torch.zeros(1, 2, 2, dtype=torch.bool)


def blocks(*frames: list[list[float]]) -> torch.Tensor:
    """Frames of 2 x 2 blocks as (F, 256, 256), the size at which `refavs` resizes nothing."""
    return torch.tensor(frames).repeat_interleave(128, 1).repeat_interleave(128, 2)


# ---- masks ------------------------------------------------------------------------------------------------------


def test_refavs_resizes_2x2_masks_to_256_and_takes_pixels_above_0_4():
    # Bilinear from 2 to 256 rows: row y lies t = (y + 0.5) / 128 - 0.5 of the way from the upper to the lower pixel.
    # Truth: 255 (1 - t) rounds to more than 0 up to row 191, 192 rows. Prediction: 0.9 - 0.8 t > 0.4 where t < 0.625,
    # up to row 143, 144 rows. J = 144 / 192.
    probs = torch.tensor([[[0.9, 0.9], [0.1, 0.1]]])
    assert pytest.approx(0.75, abs=1e-6) == score_masks(probs, TOP_HALF).J


def test_avsbench_resizes_to_224_and_takes_pixels_above_0_5():
    # t = (y + 0.5) / 112 - 0.5. Truth up to row 167, 168 rows; t < 0.5 up to row 111, 112 rows.
    probs = torch.tensor([[[0.9, 0.9], [0.1, 0.1]]])
    assert pytest.approx(112 / 168, abs=1e-6) == score_masks(probs, TOP_HALF, preset="avsbench").J


def test_aurora_keeps_the_size_and_thresholds_logits():
    # Logits of 0.6 and 0.55 are 0.41 and 0.20, so thresholds up to 0.20 take all, those up to 0.41 the upper row.
    probs = torch.tensor([[[0.6, 0.6], [0.55, 0.55]]])
    score = score_masks(probs, TOP_HALF, preset="aurora")
    assert pytest.approx(0.5, abs=1e-6) == score.J
    assert pytest.approx(1.0) == score.F
    assert score.f_curve[0] == pytest.approx(1.3 * 0.5 / (0.3 * 0.5 + 1))  # precision 1/2, recall 1
    assert score.f_curve[-1] == 0.0  # no logit reaches 1


def test_davis_finds_an_empty_frame_right_and_a_false_alarm_wrong():
    gt_masks = torch.cat([TOP_HALF, EMPTY, EMPTY])
    probs = torch.cat([torch.tensor([[[0.9, 0.1], [0.1, 0.1]]]), torch.zeros(1, 2, 2), torch.full((1, 2, 2), 0.6)])
    score = score_masks(probs, gt_masks, preset="davis")
    assert pytest.approx((0.5 + 1 + 0) / 3) == score.J
    # One pixel is near all of 2 x 2. A mask that fills the frame has no outline, as an empty one.
    assert pytest.approx(1.0) == score.F
    assert score.f_curve == ()


def test_logits_are_thresholded_as_they_are_where_they_keep_their_size():
    # logit(0.5) = 0 passes the threshold 0 only; the logit that came with it passes those up to 0.3.
    probs, logits = torch.full((1, 2, 2), 0.5), torch.full((1, 2, 2), 0.3)
    without = score_masks(probs, TOP_HALF, preset="aurora").f_curve
    with_logits = score_masks(probs, TOP_HALF, preset="aurora", mask_logits=logits).f_curve
    assert sum(value > 0 for value in without) == 1
    assert sum(value > 0 for value in with_logits) == 77  # 76 / 254 = 0.299, 77 / 254 = 0.303


def test_truth_is_resized_as_opencv_does_it():
    gt_masks = torch.rand(3, 45, 80, generator=torch.Generator().manual_seed(0)) > 0.8
    expected = [
        cv2.resize(m.astype(np.uint8) * 255, (256, 256), interpolation=cv2.INTER_LINEAR) > 0 for m in gt_masks.numpy()
    ]
    share = float(np.mean(expected))
    # Where all is predicted, J is the share of the truth.
    assert pytest.approx(share, abs=2e-4) == score_masks(torch.ones(3, 45, 80), gt_masks).J


def test_frame_with_empty_truth_gives_its_background_share_to_j_and_nothing_to_f():
    gt_masks = blocks([[0, 0], [0, 0]], [[1, 0], [0, 0]]).bool()
    probs = blocks([[0.9, 0], [0, 0]], [[0.9, 0], [0, 0]])
    score = score_masks(probs, gt_masks)
    assert pytest.approx((0.75 + 1.0) / 2, abs=1e-6) == score.J
    assert pytest.approx(1.0) == score.F


def test_f_is_the_maximum_of_the_mean_curve_not_the_mean_of_maxima():
    # Each frame alone reaches F = 1, but at thresholds that do not overlap: (0.6, 0.9] and (0.1, 0.4].
    # Best together is (0.1, 0.4]: frame 1 takes everything, F = 1.3 * 0.5 / (0.3 * 0.5 + 1), and frame 2 gets 1.
    gt_masks = blocks([[1, 1], [0, 0]], [[1, 1], [0, 0]]).bool()
    probs = blocks([[0.9, 0.9], [0.6, 0.6]], [[0.4, 0.4], [0.1, 0.1]])
    score = score_masks(probs, gt_masks)
    assert pytest.approx((0.65 / 1.15 + 1.0) / 2) == score.F
    assert len(score.f_curve) == 255


def test_missing_prediction_is_an_empty_mask_and_says_so():
    score = score_masks(None, TOP_HALF)
    assert (score.J, score.F, score.S, score.is_missing) == (0.0, 0.0, 0.0, True)


def test_missing_prediction_earns_no_iou_reward_where_the_empty_mask_would_be_right():
    result = score_answer(DRUM, TEXT, None, EMPTY)
    assert (result.J, result.S, result.completion.iou) == (pytest.approx(1.0), 0.0, 0.0)


def test_clip_with_empty_truth_has_f_zero():
    assert score_masks(torch.zeros(1, 2, 2), EMPTY).F == 0.0


def test_s_pools_over_the_clip_or_over_frames():
    # All of frame 1 and nothing of frame 2 is marked: sqrt(1/2) of the clip; frames 1 and 0, on average 1/2.
    gt_masks = torch.zeros(2, 256, 256, dtype=torch.bool)
    result = score_answer(DRUM, TEXT, blocks([[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]), gt_masks)
    assert pytest.approx(math.sqrt(0.5)) == result.S
    assert result.S_per_frame == pytest.approx(0.5)
    assert result.completion.iou == pytest.approx(1 - math.sqrt(0.5))


def test_s_counts_pixels_above_0_5_although_j_counts_them_above_0_4():
    gt_masks = torch.zeros(1, 256, 256, dtype=torch.bool)
    score = score_masks(torch.full((1, 256, 256), 0.45), gt_masks)
    assert (score.S, score.J) == (0.0, 0.0)


def test_iou_reward_is_taken_at_the_frames_own_size_from_predictions_of_any_size():
    # 1 x 1 prediction of 0.9 covers all of the 2 x 2 frame, half of it rightly.
    assert score_rollout(TEXT, torch.full((1, 1, 1), 0.9), TOP_HALF, DRUM).iou == pytest.approx(0.5, abs=1e-6)


def test_prediction_of_another_number_of_frames_is_an_error():
    with pytest.raises(ValueError, match="same"):
        score_masks(torch.zeros(2, 2, 2), TOP_HALF)


def test_unknown_preset_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="refavs, avsbench, aurora"):
        score_masks(None, TOP_HALF, preset="davis2017")


# ---- completions ------------------------------------------------------------------------------------------------


def test_right_completion_scores_one_everywhere():
    score = score_completion(TEXT, TOP_HALF.float(), TOP_HALF, DRUM)
    assert (score.value, score.is_right) == ("drum", True)
    assert score.scores == {"format": 1.0, "category": 1.0, "see": 1.0, "hear": 1.0}
    assert score.iou == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("Read:", ""),
        TEXT.replace("[SEG]", "[SEG] [SEG]"),
        TEXT.removesuffix("."),
        TEXT.replace("Look", "listen").replace("Listen", "Look"),
        "",
    ],
    ids=["step missing", "two [SEG]", "cut off", "steps in another order", "empty"],
)
def test_malformed_completion_has_format_zero(text: str):
    assert score_completion(text, None, TOP_HALF, DRUM).scores["format"] == 0.0


def test_category_is_compared_after_normalising():
    car = dataclasses.replace(DRUM, category="emergency-car")
    text = TEXT.replace("the target is the drum", 'the target is the "Emergency car"')
    assert score_completion(text, None, TOP_HALF, car).is_right
    assert not score_completion(TEXT, None, TOP_HALF, car).is_right


def test_null_reference_is_answered_by_no_such_target():
    null = dataclasses.replace(DRUM, category="null")
    text = TEXT.replace("the target is the drum", "there is no such target")
    assert score_completion(text, torch.zeros(1, 2, 2), EMPTY, null).is_right
    assert not score_completion(TEXT, torch.zeros(1, 2, 2), EMPTY, null).is_right


def test_seen_objects_may_come_in_any_order_but_once_each_and_all():
    def see(claim: str) -> float | None:
        text = TEXT.replace("an emergency-car and a drum", claim)
        return score_completion(text, None, TOP_HALF, DRUM).scores["see"]

    assert see("a drum and an emergency-car") == 1.0
    assert see("a drum") == 0.0
    assert see("a drum, a drum and an emergency-car") == 0.0
    assert see("a drum, a bell and an emergency-car") == 0.0


def test_heard_objects_must_come_in_order():
    swapped = TEXT.replace("a drum, then an emergency-car", "an emergency-car, then a drum")
    assert score_completion(swapped, None, TOP_HALF, DRUM).scores["hear"] == 0.0


def test_silence_is_heard_as_nothing():
    silent = dataclasses.replace(DRUM, heard=())
    text = TEXT.replace("a drum, then an emergency-car", "nothing")
    assert score_completion(text, None, TOP_HALF, silent).scores["hear"] == 1.0
    assert score_completion(TEXT, None, TOP_HALF, silent).scores["hear"] == 0.0


def test_chain_without_a_claim_is_wrong_not_unknown():
    score = score_completion("the target is the drum. It is [SEG].", None, TOP_HALF, DRUM)
    assert (score.scores["see"], score.scores["hear"]) == (0.0, 0.0)


def test_chain_is_not_judged_where_the_truth_is_unknown():
    unknown = dataclasses.replace(DRUM, seen=None, heard=None)
    score = score_completion(TEXT, None, TOP_HALF, unknown)
    assert (score.scores["see"], score.scores["hear"]) == (None, None)


def test_saved_masks_give_j_and_the_iou_reward_again():
    gt_masks = torch.rand(2, 9, 7, generator=torch.Generator().manual_seed(1)) > 0.6
    probs = torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(2))
    result = score_answer(DRUM, TEXT, probs, gt_masks)
    masks = torch.from_numpy(decode_masks(result.completion.pred_masks))
    assert masks.shape == gt_masks.shape
    assert score_rollout(TEXT, masks.float(), gt_masks, DRUM).iou == pytest.approx(result.completion.iou)
    preset_masks = torch.from_numpy(decode_masks(result.completion.preset_masks))
    assert preset_masks.shape == (2, 256, 256)
    assert pytest.approx(result.J) == score_masks(preset_masks.float(), gt_masks).J


def test_rollout_holds_the_three_rewards():
    rollout = score_rollout(TEXT, torch.full((1, 2, 2), 0.9), TOP_HALF, DRUM)
    assert (rollout.scores["format"], rollout.scores["category"], rollout.is_right) == (1.0, 1.0, True)
    assert rollout.iou == pytest.approx(0.5, abs=1e-6)
    nothing = score_rollout("", None, EMPTY, DRUM)
    assert (nothing.scores["format"], nothing.scores["category"], nothing.iou) == (0.0, 0.0, 0.0)
    sums = [MEASURES["sampled_reward"].value(answered(0, sampled=(each,))) for each in (rollout, nothing)]
    assert sums == [pytest.approx(2.5, abs=1e-6), 0.0]


def test_result_keeps_what_joins_it_to_the_benchmark():
    result = score_answer(DRUM, TEXT, None, TOP_HALF)
    assert result.key == DRUM.key == "clip_0_1000_drum_1#7"
    assert (result.media_id, result.split, result.reference_type) == ("clip_0_1000", "test_s", "audio order")
    assert (result.preset, result.sampled) == ("refavs", ())


# ---- rows that are annotated in part, or not at all ---------------------------------------------------------------


def test_masks_without_annotation_are_saved_and_not_scored():
    """The truth is of the second of three frames; the others are all wrong."""
    in_part = dataclasses.replace(DRUM, frame_paths=("0.jpg", "1.jpg", "2.jpg"), mask_paths=("", "1.png", ""))
    probs = torch.cat([torch.ones(1, 2, 2), TOP_HALF.float(), torch.ones(1, 2, 2)])
    result, alone = score_answer(in_part, TEXT, probs, TOP_HALF), score_answer(DRUM, TEXT, TOP_HALF.float(), TOP_HALF)
    assert result.masks == alone.masks and result.completion.iou == alone.completion.iou
    assert score_rollout(TEXT, probs, TOP_HALF, in_part).iou == alone.completion.iou
    assert decode_masks(result.completion.pred_masks).sum((1, 2)).tolist() == [4, 2, 4]
    assert len(result.completion.preset_masks) == 3
    missing = score_answer(in_part, TEXT, None, TOP_HALF)
    assert (missing.J, missing.is_missing, len(missing.completion.pred_masks)) == (0.0, True, 3)


def test_row_without_truth_keeps_its_masks_and_has_no_scores_of_them():
    result = score_answer(DRUM, TEXT, TOP_HALF.float(), None)
    assert (result.masks, result.completion.iou, result.completion.is_right) == (None, None, True)
    assert np.array_equal(decode_masks(result.completion.pred_masks), TOP_HALF.numpy())
    assert score_answer(DRUM, TEXT, None, None).completion.pred_masks == ()


def test_a_task_of_words_scores_no_masks_though_the_row_has_some():
    question = dataclasses.replace(DRUM, choices=("dog", "drum"), answer="drum")
    result = score_answer(question, "Answer: B", None, TOP_HALF, task=MultipleChoice())
    assert (result.masks, result.is_missing, result.answer) == (None, False, "drum")
    assert (result.completion.value, result.completion.is_right, result.completion.iou) == ("b", True, None)
    assert result.completion.pred_masks == () and result.completion.scores["accuracy"] == 1.0
    rollout = score_rollout("Answer: A", None, TOP_HALF, question, task=MultipleChoice())
    assert (rollout.is_right, rollout.iou) == (False, None)


def test_scores_of_a_box_head_stand_beside_those_of_the_words():
    scores = {"box_iou": 0.5, "presence": 1.0}
    text = TEXT.replace("[SEG]", "[BOX]")
    result = score_answer(DRUM, text, None, TOP_HALF, task=ReferenceBoxes(), head_scores=scores)
    assert result.masks is None and result.completion.is_right
    assert {**scores, "format": 1.0, "category": 1.0}.items() <= result.completion.scores.items()


def test_a_score_of_ones_own_task_that_is_no_number_is_an_error_that_names_the_row():
    class Divides(MultipleChoice):
        def text_scores(self, answer, sample):
            return {"brief": float("nan")}

    question = dataclasses.replace(DRUM, choices=("dog", "drum"), answer="drum")
    for score in (score_completion, score_rollout):
        with pytest.raises(ValueError, match=r"sample clip_0_1000_drum_1#7, task .*Divides: the score brief is nan"):
            score("B", None, None, question, task=Divides())
