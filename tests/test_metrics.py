import math

import pytest
import torch

from aurora_rl import metrics
from aurora_rl.metrics import (
    f_measure_curve,
    jaccard,
    logit_f_measure_curve,
    mask_iou,
    null_s,
    region_similarity,
    resize_probs,
    resize_truth,
)

EMPTY = torch.zeros(1, 10, 10, dtype=torch.bool)
FULL = torch.ones(1, 10, 10, dtype=torch.bool)


def _mask(*pixels, frames=1, size=(10, 10)):
    mask = torch.zeros(frames, *size, dtype=torch.bool)
    for row, column in pixels:
        mask[0, row, column] = True
    return mask


TWO_PIXELS = _mask((0, 0), (0, 1))


def test_region_similarity_is_intersection_over_union():
    # 1 pixel common, 3 in the union.
    assert region_similarity(_mask((0, 1), (0, 2)), TWO_PIXELS).tolist() == pytest.approx([1 / 3])


def test_a_perfect_mask_scores_one_and_a_missed_object_zero():
    assert region_similarity(TWO_PIXELS, TWO_PIXELS).tolist() == pytest.approx([1.0])
    assert region_similarity(EMPTY, TWO_PIXELS).tolist() == [0.0]


def test_a_frame_with_empty_truth_scores_its_share_of_background():
    assert region_similarity(TWO_PIXELS, EMPTY).tolist() == pytest.approx([0.98])
    assert region_similarity(EMPTY, EMPTY).tolist() == [1.0]


def test_region_similarity_is_per_frame():
    pred_masks = torch.cat([TWO_PIXELS, TWO_PIXELS, FULL])
    gt_masks = torch.cat([TWO_PIXELS, EMPTY, TWO_PIXELS])
    assert region_similarity(pred_masks, gt_masks).tolist() == pytest.approx([1.0, 0.98, 0.02])


def test_jaccard_of_two_empty_masks_is_one_and_of_a_false_alarm_zero():
    pred_masks = torch.cat([EMPTY, TWO_PIXELS, _mask((0, 1), (0, 2))])
    gt_masks = torch.cat([EMPTY, EMPTY, TWO_PIXELS])
    assert jaccard(pred_masks, gt_masks).tolist() == [1.0, 0.0, 1 / 3]


def test_mask_iou_of_a_clip_is_the_mean_over_its_frames():
    # A perfect frame, and an empty-truth frame with 2 false pixels of 100.
    assert mask_iou(torch.cat([TWO_PIXELS] * 2), torch.cat([TWO_PIXELS, EMPTY])) == pytest.approx((1 + 0.98) / 2)


def test_a_false_alarm_of_two_percent_scores_one_minus_its_root():
    assert null_s(TWO_PIXELS) == pytest.approx(math.sqrt(0.02))
    assert mask_iou(TWO_PIXELS, EMPTY) == pytest.approx(1 - math.sqrt(0.02))


def test_s_ranges_from_nothing_to_everything_predicted():
    assert null_s(EMPTY) == 0.0
    assert null_s(FULL) == 1.0
    assert mask_iou(EMPTY, EMPTY) == 1.0
    assert mask_iou(FULL, EMPTY) == 0.0


def test_f_measure_of_a_hand_worked_mask():
    # Object of 2 pixels; one of them at 0.9, one background pixel at 0.9, the rest at 0.1.
    mask_probs = torch.full((1, 10, 10), 0.1)
    mask_probs[0, 0, 0] = mask_probs[0, 5, 5] = 0.9
    curve = f_measure_curve(mask_probs, TWO_PIXELS)
    assert curve.shape == (255,)
    # Threshold 0: all 100 pixels predicted, P = 0.02, R = 1. Threshold 127/254 = 0.5: P = R = 0.5. The last: none.
    assert curve[0].item() == pytest.approx(1.3 * 0.02 / (0.3 * 0.02 + 1))
    assert curve[127].item() == pytest.approx(0.5)
    assert curve[254].item() == 0.0


def test_f_measure_curve_equals_its_definition():
    generator = torch.Generator().manual_seed(0)
    mask_probs = torch.rand(3, 16, 16, generator=generator)
    mask_probs[0, :4] = torch.linspace(0, 1 - 1e-10, 255)[:64].reshape(4, 16)  # exactly on the thresholds
    gt_masks = torch.rand(3, 16, 16, generator=generator) > 0.7
    assert torch.allclose(f_measure_curve(mask_probs, gt_masks), _defined_curve(mask_probs, gt_masks), atol=1e-6)


def _defined_curve(scores, gt_masks):
    """255 passes over the frames, as the official script writes it."""
    curves = []
    for frame, truth in zip(scores, gt_masks.double(), strict=True):
        curve = []
        for threshold in torch.linspace(0, 1 - 1e-10, 255):
            predicted = (frame >= threshold).double()
            true_positives = (predicted * truth).sum()
            precision, recall = true_positives / (predicted.sum() + 1e-20), true_positives / (truth.sum() + 1e-20)
            curve.append(torch.nan_to_num(1.3 * precision * recall / (0.3 * precision + recall)))
        curves.append(torch.stack(curve))
    return torch.stack(curves).mean(0)


def test_f_measure_drops_the_frames_with_empty_truth():
    mask_probs = TWO_PIXELS.float() * 0.9
    with_empty_frame = f_measure_curve(torch.cat([mask_probs, mask_probs]), torch.cat([TWO_PIXELS, EMPTY]))
    assert torch.equal(with_empty_frame, f_measure_curve(mask_probs, TWO_PIXELS))


def test_f_measure_of_a_clip_with_empty_truth_is_zero():
    assert f_measure_curve(torch.zeros(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)).tolist() == [0.0] * 255


def test_f_measure_refuses_logits():
    with pytest.raises(ValueError, match=r"mask_probs lies in \[-3, 3\].*sigmoid"):
        f_measure_curve(torch.tensor([[[-3.0, 3.0]]]), torch.tensor([[[False, True]]]))
    with pytest.raises(ValueError, match="mask_probs"):
        f_measure_curve(torch.full((1, 1, 2), torch.nan), torch.tensor([[[False, True]]]))


def test_f_measure_on_logits_is_another_number():
    # A sure object pixel, an unsure background pixel: sigmoid(0.5) = 0.62, sigmoid(3) = 0.95.
    mask_logits, gt_masks = torch.tensor([[[0.5, 3.0]]]), torch.tensor([[[False, True]]])
    on_logits, on_probs = logit_f_measure_curve(mask_logits, gt_masks), f_measure_curve(mask_logits.sigmoid(), gt_masks)
    index = 140  # threshold 140/254 = 0.551, above the logit 0.5 and below its probability 0.62
    assert on_logits[index].item() == pytest.approx(1.0)
    assert on_probs[index].item() == pytest.approx(1.3 * 0.5 / (0.3 * 0.5 + 1))


def test_infinite_logits_are_certain_pixels_and_nan_is_refused():
    gt_masks = torch.tensor([[[False, True]]])
    curve = logit_f_measure_curve(torch.tensor([[[-torch.inf, torch.inf]]]), gt_masks)
    assert curve.tolist() == pytest.approx([1.0] * 255)
    with pytest.raises(ValueError, match="NaN"):
        logit_f_measure_curve(torch.tensor([[[torch.nan, 1.0]]]), gt_masks)


@pytest.mark.parametrize("score", [region_similarity, jaccard, mask_iou])
def test_masks_that_would_broadcast_are_refused(score):
    with pytest.raises(ValueError, match=r"\(3, 10, 10\).*\(1, 10, 10\)"):
        score(EMPTY.expand(3, 10, 10), EMPTY)
    with pytest.raises(ValueError, match=r"\(10, 10\), expected a non-empty \(F, H, W\)"):
        score(EMPTY[0], EMPTY[0])
    with pytest.raises(ValueError, match=r"\(0, 10, 10\), expected a non-empty"):
        score(EMPTY[:0], EMPTY[:0])


def test_f_measure_refuses_masks_that_would_broadcast():
    with pytest.raises(ValueError, match=r"mask_probs has shape \(3, 10, 10\)"):
        f_measure_curve(torch.zeros(3, 10, 10), EMPTY)


def test_masks_that_are_not_bool_are_refused():
    with pytest.raises(ValueError, match="pred_masks is torch.float32, expected bool"):
        region_similarity(EMPTY.float(), EMPTY)


def test_probabilities_are_resized_bilinearly():
    # Half-pixel centres: output centres fall at -0.25, 0.25, 0.75 and 1.25 of the input columns.
    resized = resize_probs(torch.tensor([[[0.0, 1.0]]]), (1, 4))
    assert resized.tolist() == [[[0.0, 0.25, 0.75, 1.0]]]


def test_shrinking_probabilities_does_not_antialias():
    # Factor 4: only the two columns around each centre (1.5 of 0..3) count; the outer ones are not averaged in.
    assert resize_probs(torch.tensor([[[1.0, 0.0, 0.0, 1.0]]]), (1, 1)).item() == 0.0


def test_truth_keeps_every_pixel_it_touches():
    truth = torch.tensor([[[True, False, False]]])
    assert resize_truth(truth, (1, 6)).tolist() == [[[True, True, True, False, False, False]]]


def test_resizing_to_the_same_size_changes_nothing():
    mask_probs = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize_probs(mask_probs, (3, 5)), mask_probs)
    assert torch.equal(resize_truth(mask_probs > 0.5, (3, 5)), mask_probs > 0.5)


@pytest.mark.parametrize("size", [(360, 640), (100, 100), (256, 511)])
def test_truth_is_resized_as_opencv_does_it(size):
    cv2 = pytest.importorskip("cv2")
    height, width = size
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    disc = (rows - 0.4 * height) ** 2 + (columns - 0.6 * width) ** 2 < (0.3 * height) ** 2
    expected = cv2.resize(disc.numpy().astype("uint8") * 255, (256, 256), interpolation=cv2.INTER_LINEAR) > 0
    assert (resize_truth(disc[None], (256, 256))[0].numpy() == expected).all()


# ---- counts ---------------------------------------------------------------------------------------------------------


def test_counts_are_those_of_the_pixels_frame_by_frame():
    predicted = torch.tensor([[[1, 1], [0, 0]], [[1, 1], [1, 0]]]).bool()
    truth = torch.tensor([[[1, 0], [1, 0]], [[0, 0], [0, 0]]]).bool()
    counts = metrics.count_masks(predicted, truth)
    assert [counts.predicted.tolist(), counts.true.tolist(), counts.both.tolist()] == [[2, 3], [2, 0], [1, 0]]
    assert counts.frame_pixels == 4 and counts.union.tolist() == [3, 3]
    assert counts.region_similarity.tolist() == pytest.approx([1 / 3, 1 / 4], abs=1e-6)
    assert counts.mask_iou == pytest.approx((1 / 3 + 1 / 4) / 2, abs=1e-6)


@pytest.mark.parametrize("layout", ["contiguous", "strided", "transposed"])
def test_scores_of_counts_are_those_of_sums_over_the_masks(layout: str):
    generator = torch.Generator().manual_seed(0)
    predicted, truth = torch.rand(2, 7, 31, 45, generator=generator) > 0.6
    truth[2] = False
    if layout != "contiguous":
        cut = (lambda x: x[:, ::2, 1::3]) if layout == "strided" else (lambda x: x.transpose(1, 2))
        predicted, truth = cut(predicted), cut(truth)
    union, both = (predicted | truth).sum((1, 2)).double(), (predicted & truth).sum((1, 2)).double()
    background = (~predicted).double().mean((1, 2))
    expected = torch.where(truth.any(2).any(1), both / (union + 1e-7), background)
    torch.testing.assert_close(metrics.region_similarity(predicted, truth), expected, rtol=0, atol=1e-12)
    assert metrics.mask_iou(predicted, truth) == pytest.approx(float(expected.mean()), abs=1e-12)


@pytest.mark.parametrize("num_frames", [1, 3, 600])
def test_place_of_masks_is_the_mean_of_their_pixels(num_frames: int):
    masks = torch.rand(num_frames, 9, 13, generator=torch.Generator().manual_seed(1)) > 0.3
    _, rows, columns = masks.nonzero(as_tuple=True)
    x, y, share = metrics.mask_place(masks)
    assert x == pytest.approx((float(columns.double().mean()) + 0.5) / 13, abs=1e-12)
    assert y == pytest.approx((float(rows.double().mean()) + 0.5) / 9, abs=1e-12)
    assert share == pytest.approx(float(masks.double().mean()), abs=1e-12)
    assert metrics.mask_place(torch.zeros(2, 3, 3, dtype=torch.bool)) is None
