import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "module",
    [
        *("reward_fns.format", "reward_fns.mask_iou", "reward_fns.box_iou", "reward_fns.point_in_mask"),
        *("reward_fns.category", "reward_fns.perception", "reward_fns.reasoning_consistency", "reward_fns.listening"),
        "reward_fns.judge",
        "aurora_rl.trainers.counterfactuals",
    ],
)
def test_worked_examples_hold(module):
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted and not results.failed
