"""F of outlines, by hand."""

import pytest
import torch

from aurora_rl.boundary import boundary_f_measure, outlines


def square(top: int, left: int, side: int, *, size: int = 100) -> torch.Tensor:
    masks = torch.zeros(1, size, size, dtype=torch.bool)
    masks[:, top : top + side, left : left + side] = True
    return masks


EMPTY = torch.zeros(1, 100, 100, dtype=torch.bool)


def test_outline_is_drawn_on_the_pixels_above_and_to_the_left_of_a_change():
    # A pixel differs from its right, lower or diagonal neighbour: the square's last row and column, and those before.
    found = outlines(square(1, 1, 2, size=4))[0].int().tolist()
    assert found == [[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


def test_mask_that_fills_the_frame_has_no_outline():
    assert not outlines(torch.ones(1, 4, 4, dtype=torch.bool)).any()


def test_masks_nearer_than_the_tolerance_agree():
    # The diagonal of 100 x 100 is 141.4, of which 0.008 is 1.13: two pixels are near, three are not.
    assert boundary_f_measure(square(20, 20, 40), square(20, 20, 40)).tolist() == [1.0]
    assert boundary_f_measure(square(20, 20, 40), square(20, 22, 40)).tolist() == [1.0]
    assert 0 < boundary_f_measure(square(20, 20, 40), square(20, 23, 40)).item() < 1


def test_a_diagonal_step_is_farther_than_a_straight_one():
    # Single pixels have outlines of 2 x 2 (the pixel and its left, upper and diagonal neighbours). Two such blocks that
    # lie (3, 3) apart are (2, 2) apart at their nearest, and that is 2.83 > 2; (3, 0) apart they are 2 apart.
    straight = boundary_f_measure(square(50, 50, 1), square(53, 50, 1)).item()
    diagonal = boundary_f_measure(square(50, 50, 1), square(53, 53, 1)).item()
    assert (straight, diagonal) == (0.5, 0.0)


def test_an_outline_that_only_one_mask_has_scores_0_and_none_at_all_1():
    assert boundary_f_measure(EMPTY, square(20, 20, 40)).tolist() == [0.0]
    assert boundary_f_measure(square(20, 20, 40), EMPTY).tolist() == [0.0]
    assert boundary_f_measure(EMPTY, EMPTY).tolist() == [1.0]


def test_precision_and_recall_are_weighed_alike():
    # The truth and a far square of the same size: recall 1, precision 1/2, F = 2/3; swapped, the same.
    both = square(5, 5, 10) | square(70, 70, 10)
    assert boundary_f_measure(both, square(5, 5, 10)).tolist() == pytest.approx([2 / 3])
    assert boundary_f_measure(square(5, 5, 10), both).tolist() == pytest.approx([2 / 3])


def test_each_frame_is_judged_alone():
    pred_masks = torch.cat([square(20, 20, 40), EMPTY, EMPTY])
    gt_masks = torch.cat([square(20, 20, 40), square(20, 20, 40), EMPTY])
    assert boundary_f_measure(pred_masks, gt_masks).tolist() == [1.0, 0.0, 1.0]


def test_masks_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 100, 100\).*\(1, 100, 100\)"):
        boundary_f_measure(EMPTY.expand(3, 100, 100), EMPTY)
