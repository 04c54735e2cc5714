"""Boxes against the truth, worked by hand."""

import pytest
import torch

from aurora_rl.box_metrics import box_overlap, box_quality, box_scores, boxes_of_masks, points_in_masks


def mask(*pixels: tuple[int, int]) -> torch.Tensor:
    truth = torch.zeros(1, 4, 8, dtype=torch.bool)
    for row, column in pixels:
        truth[0, row, column] = True
    return truth


def test_box_of_a_mask_reaches_to_the_far_edges_of_its_pixels():
    assert boxes_of_masks(mask((1, 2), (2, 5))).tolist() == [[2 / 8, 1 / 4, 6 / 8, 3 / 4]]
    assert boxes_of_masks(mask((3, 7))).tolist() == [[7 / 8, 3 / 4, 1.0, 1.0]]
    assert boxes_of_masks(mask()).tolist() == [[0.0, 0.0, 0.0, 0.0]]


def test_iou_and_giou():
    a = torch.tensor([[0.0, 0.0, 0.5, 0.5]])
    same, half = a, torch.tensor([[0.0, 0.0, 0.5, 0.25]])
    apart = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    assert [value.item() for value in box_overlap(a, same)] == [1.0, 1.0]
    assert [value.item() for value in box_overlap(a, half)] == [0.5, 0.5]
    assert [value.item() for value in box_overlap(a, apart)] == [0.0, -0.5]  # the box around both is half empty


def test_a_box_without_an_area_has_no_overlap_and_a_finite_gradient():
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    iou, giou = box_overlap(point, torch.tensor([[0.5, 0.5, 0.5, 0.5]]))
    (iou + giou).sum().backward()
    assert iou.item() == 0.0 and point.grad is not None and point.grad.isfinite().all()


def test_point_on_the_last_edge_counts_to_the_last_pixel():
    points = torch.tensor([[1.0, 1.0]])
    assert points_in_masks(points, mask((3, 7))).tolist() == [True]
    assert points_in_masks(points, mask((0, 0))).tolist() == [False]


def test_scores_of_frames_with_the_object_and_of_an_empty_one():
    truth = torch.cat([mask((0, 0), (3, 7)), mask((0, 0), (3, 7)), mask()])  # all of the frame, twice, and nothing
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.25, 1.0], [0.0, 0.0, 1.0, 1.0]])
    presence, points = torch.tensor([0.9, 0.4, 0.2]), torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.0, 0.0]])
    scores = box_scores(boxes, presence, points, truth)
    assert scores == {
        "box_iou": pytest.approx(0.625),
        "box_hits": 0.5,
        "point_in_mask": 0.5,
        "presence": pytest.approx(2 / 3),
    }
    assert box_quality(boxes, presence, truth) == pytest.approx((1 + 0.25 + 0.8) / 3)


def test_scores_without_the_object_are_of_the_presence_alone():
    boxes, presence, points = torch.zeros(1, 4), torch.tensor([0.7]), torch.zeros(1, 2)
    scores = box_scores(boxes, presence, points, mask())
    assert scores == {"box_iou": None, "box_hits": None, "point_in_mask": None, "presence": 0.0}


def test_other_numbers_of_frames_are_an_error():
    with pytest.raises(ValueError, match="do not fit gt_masks"):
        box_quality(torch.zeros(2, 4), torch.zeros(2), mask())
