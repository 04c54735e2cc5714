import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name", ["format", "mask_iou", "box_iou", "point_in_mask", "category", "perception", "reasoning_consistency"]
)
def test_worked_examples_hold(name):
    results = doctest.testmod(importlib.import_module(f"reward_fns.{name}"))
    assert results.attempted and not results.failed
