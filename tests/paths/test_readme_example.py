import asyncio
import re
from pathlib import Path

import pytest
import torch

from aurora_rl.rewards import guard_reward_func, load_reward_func

ROOT = Path(__file__).parents[2]
MARKER = "<!-- reward-example -->"


def _example_blocks():
    """The fenced block between the markers, of each README that shows it."""
    texts = [path.read_text() for path in (ROOT / "README.md", ROOT / "reward_fns/README.md") if path.exists()]
    between = [text.split(MARKER)[1] for text in texts if MARKER in text]
    return [re.search(r"```python\n(.*?)```", block, re.DOTALL)[1] for block in between]


@pytest.fixture
def temporal_consistency_reward(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(_example_blocks()[0])
    return guard_reward_func(load_reward_func(f"{path}:temporal_consistency_reward"))


def test_every_readme_shows_the_same_example():
    assert len(set(_example_blocks())) == 1


def test_the_example_rewards_masks_that_stay(temporal_consistency_reward):
    left, both, nothing = [True, False], [True, True], [False, False]
    # left, both: 1/2. both, both: 1. nothing, nothing: 1.
    clip = torch.tensor([[left], [both], [both]])
    empty_clip = torch.tensor([[nothing], [nothing]])
    rewards = temporal_consistency_reward(
        prompts=["p"] * 4,
        completions=["c"] * 4,
        pred_masks=[clip, empty_clip, None, clip[:1]],
        gt_masks=[clip, empty_clip, clip, clip[:1]],
    )
    assert rewards == [0.75, 1.0, 0.0, None]
    assert temporal_consistency_reward.__name__ == "temporal_consistency_reward"
    assert not asyncio.iscoroutinefunction(temporal_consistency_reward)
