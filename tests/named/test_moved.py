import importlib.util

import pytest

from aurora_rl.named.moved import MOVED, new_place
from aurora_rl.rewards import RewardError, load_reward_func


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_what_moved_is_at_its_new_place_and_no_longer_at_the_old_one(old: str, new: str) -> None:
    assert importlib.util.find_spec(f"aurora_rl.{new}") is not None
    assert old in ("evaluation", "inference", "report") or not exists(f"aurora_rl.{old}")  # these are rooms now


def test_a_reward_at_an_old_place_is_told_the_new_one() -> None:
    with pytest.raises(RewardError, match=r"it is 'aurora_rl.tasks.completions' now"):
        load_reward_func("aurora_rl.completions:parse_completion")


def test_a_module_of_a_package_that_moved_has_moved_with_it() -> None:
    assert new_place("aurora_rl.models.segmenters.sam2") == "aurora_rl.models.heads.segmenters.sam2"
    assert new_place("aurora_rl.losses") is None and new_place("config") is None


def exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of its package
        return False
