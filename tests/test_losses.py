import math

import pytest
import torch

from aurora_rl.losses import dice_loss, feature_distillation_loss, mask_bce_loss, mask_loss

#: softplus(-2): BCE of a logit of 2 on the right side.
RIGHT = math.log(1 + math.exp(-2))
#: softplus(2): BCE of a logit of 2 on the wrong side.
WRONG = math.log(1 + math.exp(2))
P = 1 / (1 + math.exp(-2))


def _clip(*frames):
    return torch.tensor([[frame] for frame in frames])  # (F, 1, W)


def test_bce_is_the_mean_over_pixels_then_frames():
    mask_logits = _clip([2.0, 2.0], [2.0, -2.0])[None]  # (1, 2, 1, 2)
    gt_masks = _clip([True, False], [True, False])[None]
    frame_means = [(RIGHT + WRONG) / 2, RIGHT]
    assert mask_bce_loss(mask_logits, gt_masks).tolist() == pytest.approx([sum(frame_means) / 2])


def test_dice_of_a_hand_worked_frame():
    # p = (P, P), g = (1, 0): 1 - (2P + 1) / (2P + 1 + 1).
    loss = dice_loss([_clip([2.0, 2.0])], [_clip([True, False])])
    assert loss.tolist() == pytest.approx([1 - (2 * P + 1) / (2 * P + 2)])


def test_dice_leaves_out_the_frames_with_empty_truth():
    with_empty_frame = dice_loss([_clip([2.0, 2.0], [2.0, 2.0])], [_clip([True, False], [False, False])])
    assert with_empty_frame.tolist() == pytest.approx(dice_loss([_clip([2.0, 2.0])], [_clip([True, False])]).tolist())


def test_only_bce_counts_where_the_truth_is_empty_everywhere():
    mask_logits = _clip([2.0, 2.0]).requires_grad_()
    losses = mask_loss([mask_logits], [_clip([False, False])])
    assert losses.dice.item() == 0.0
    assert losses.total.item() == pytest.approx(2.0 * WRONG)
    (gradient,) = torch.autograd.grad(losses.dice, mask_logits)
    assert not gradient.any()


def test_lisa_dice_counts_every_frame_and_scales_by_a_thousand():
    empty_frame = 1 - 1e-6 / (2 * P / 1000 + 1e-6)
    frame = 1 - (2 * P / 1000 + 1e-6) / ((2 * P + 1) / 1000 + 1e-6)
    loss = dice_loss([_clip([2.0, 2.0], [2.0, 2.0])], [_clip([True, False], [False, False])], variant="lisa")
    assert loss.tolist() == pytest.approx([(frame + empty_frame) / 2])


def test_an_unknown_dice_variant_is_refused():
    with pytest.raises(ValueError, match="'lisaa' is unknown: choose one of .*'aurora', 'lisa'"):
        dice_loss([_clip([0.0])], [_clip([True])], variant="lisaa")


def test_total_is_the_weighted_sum_of_the_parts():
    rows = [_clip([2.0, 2.0])], [_clip([True, False])]
    losses = mask_loss(*rows)
    assert losses.total.item() == pytest.approx(2.0 * losses.bce.item() + 0.5 * losses.dice.item())
    losses = mask_loss(*rows, bce_weight=1.0, dice_weight=0.0)
    assert losses.total.item() == pytest.approx((RIGHT + WRONG) / 2)


def test_rows_of_different_sizes_weigh_the_same():
    small, large = (_clip([2.0]), _clip([True])), (torch.full((3, 4, 5), 2.0), torch.zeros(3, 4, 5, dtype=torch.bool))
    losses = mask_loss([small[0], large[0]], [small[1], large[1]])
    assert losses.bce.item() == pytest.approx((RIGHT + WRONG) / 2)
    assert losses.per_row.shape == (2,)
    assert losses.per_row[1].item() == pytest.approx(2.0 * WRONG)


def test_a_batch_of_two_is_the_mean_of_two_batches_of_one():
    generator = torch.Generator().manual_seed(0)
    mask_logits = torch.randn(2, 3, 4, 5, generator=generator)
    gt_masks = torch.randn(2, 3, 4, 5, generator=generator) > 0
    singles = [mask_loss(mask_logits[b : b + 1], gt_masks[b : b + 1]).total for b in range(2)]
    assert mask_loss(mask_logits, gt_masks).total.item() == pytest.approx(torch.stack(singles).mean().item())
    as_lists = mask_loss(list(mask_logits), list(gt_masks)).total
    assert mask_loss(mask_logits, gt_masks).total.item() == pytest.approx(as_lists.item())


def test_a_row_of_weight_zero_counts_nothing_and_stays_in_the_graph():
    counted, left_out = _clip([2.0]).requires_grad_(), _clip([2.0]).requires_grad_()
    losses = mask_loss([counted, left_out], [_clip([True]), _clip([False])], row_weights=torch.tensor([1.0, 0.0]))
    assert losses.bce.item() == pytest.approx(RIGHT)
    losses.total.backward()
    assert counted.grad.abs().sum() > 0
    assert left_out.grad.tolist() == [[[0.0]]]


def test_a_batch_without_any_counted_row_has_loss_zero():
    mask_logits = _clip([2.0]).requires_grad_()
    losses = mask_loss([mask_logits], [_clip([False])], row_weights=torch.zeros(1))
    losses.total.backward()
    assert losses.total.item() == 0.0
    assert mask_logits.grad.tolist() == [[[0.0]]]


def test_weights_of_less_than_one_in_all_are_not_blown_up():
    losses = mask_loss([_clip([2.0])], [_clip([False])], row_weights=torch.tensor([0.25]))
    assert losses.bce.item() == pytest.approx(0.25 * WRONG)


def test_the_mean_of_unequal_parts_is_the_loss_of_the_whole():
    share = torch.tensor(3 / 2)  # three rows in two parts
    two = mask_loss([_clip([2.0])] * 2, [_clip([True])] * 2, normalizer=share)
    one = mask_loss([_clip([2.0])], [_clip([False])], normalizer=share)
    assert (two.bce + one.bce).item() / 2 == pytest.approx((2 * RIGHT + WRONG) / 3)


def test_losses_are_float32_whatever_the_logits_are():
    mask_logits = torch.full((1, 1, 100, 100), 2.0, dtype=torch.bfloat16)
    losses = mask_loss(mask_logits, torch.ones(1, 1, 100, 100, dtype=torch.bool))
    assert losses.total.dtype == torch.float32
    assert losses.bce.item() == pytest.approx(RIGHT, rel=1e-5)


@pytest.mark.parametrize("loss", [mask_bce_loss, dice_loss, mask_loss])
def test_masks_that_would_broadcast_are_refused(loss):
    with pytest.raises(ValueError, match=r"row 0: mask_logits \(3, 1, 2\) and gt_masks \(1, 1, 2\)"):
        loss([torch.zeros(3, 1, 2)], [torch.zeros(1, 1, 2, dtype=torch.bool)])


def test_a_missing_row_is_refused():
    with pytest.raises(ValueError, match="2 rows of mask_logits for 1 rows of gt_masks"):
        mask_loss([_clip([0.0])] * 2, [_clip([True])])
    with pytest.raises(ValueError, match=r"row_weights has shape \(1,\), expected \(2,\)"):
        mask_loss([_clip([0.0])] * 2, [_clip([True])] * 2, row_weights=torch.ones(1))


def test_distillation_is_the_mean_squared_difference():
    # Rows: (1 + 9) / 2 = 5 and 0.
    student, teacher = torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.tensor([[0.0, 0.0], [2.0, 2.0]])
    assert feature_distillation_loss(student, teacher).item() == pytest.approx(2.5)
    assert feature_distillation_loss(student, teacher, row_weights=torch.tensor([1.0, 0.0])).item() == pytest.approx(
        5.0
    )


def test_distillation_does_not_move_the_teacher():
    student, teacher = torch.ones(1, 2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    feature_distillation_loss(student, teacher).backward()
    assert student.grad.tolist() == [[1.0, 1.0]]
    assert teacher.grad is None


def test_features_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(1, 4\)"):
        feature_distillation_loss(torch.zeros(2, 4), torch.zeros(1, 4))
