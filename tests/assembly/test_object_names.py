import sys

import pytest

from aurora_rl.assembly.arguments import RewardArguments
from aurora_rl.assembly.object_names import check_object
from aurora_rl.rewards import load_reward_func

REWARDS = """
from math import dist as distance
raise RuntimeError("this file is read and never run")
async def slow_reward(prompts, completions, **columns): ...
class Scale: ...
scaled, (other, _hidden) = Scale(), (Scale(), 1)
"""


def check(spec: str) -> None:
    check_object(spec, name="--reward_funcs", what="reward")


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(REWARDS)
    (tmp_path / "aurora_test_package" / "deep").mkdir(parents=True)
    for module in ("aurora_test_package/__init__.py", "aurora_test_package/deep/rewards.py"):
        (tmp_path / module).write_text(REWARDS)
    (tmp_path / "aurora_test_package" / "compiled.so").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_shipped_rewards_are_found_as_they_are_loaded():
    for spec in RewardArguments().reward_funcs:
        check(spec)
        assert load_reward_func(spec)


@pytest.mark.parametrize("name", ["slow_reward", "Scale", "scaled", "other", "distance"])
def test_what_a_file_defines_is_found_without_running_it(here, name):
    for place in ("mine.py", "aurora_test_package", "aurora_test_package.deep.rewards"):
        check(f"{place}:{name}")
    assert not [module for module in sys.modules if module.startswith("aurora_test_package")]


@pytest.mark.parametrize("text", ["globals()['x'] = 1", "from math import *", "def __getattr__(name): ...", "a b"])
def test_what_a_file_may_define_while_it_runs_is_left_to_the_import(here, tmp_path, text):
    (tmp_path / "other.py").write_text(text)
    check("other.py:x")
    check("aurora_test_package.compiled:x")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("mine.py:slow_rewrad", "mine.py defines no 'slow_rewrad', did you mean 'slow_reward'"),
        ("mine.py:zzz", "it has Scale, distance, other, scaled, slow_reward"),
        ("mien.py:slow_reward", "the reward file mien.py does not exist: this folder holds mine.py"),
        ("aurora_test_package.shallow:x", "there is no module 'aurora_test_package.shallow': install it"),
        ("aurora_test_package.deep.rewards.more:x", "there is no module"),
        ("json.tool.x:main", "there is no module 'json.tool.x'"),
        ("no_such_package:x", "there is no module 'no_such_package'"),
        ("aurora_rl.evaluation_.x:f", "there is no module 'aurora_rl.evaluation_.x'"),
        ("aurora_rl.prompts:f", "it is 'aurora_rl.tasks.prompts' now"),
        ("mine.py", "write 'package.module:function'"),
        (":x", "write 'package.module:function'"),
        ("mine.py:", "write 'package.module:function'"),
    ],
)
def test_what_cannot_be_found_is_told(here, spec, told):
    with pytest.raises(ValueError, match="--reward_funcs") as error:
        check(spec)
    assert told in str(error.value)


def test_a_single_reward_needs_no_list():
    assert RewardArguments("a:b").reward_funcs == ["a:b"]


def test_error_names_the_kind_of_object(here):
    with pytest.raises(ValueError, match=r"--task: the task file mien.py does not exist"):
        check_object("mien.py:Choice", name="--task", what="task")
    with pytest.raises(ValueError, match=r"--task has 'mine': write 'package.module:Name' or 'path/to/file.py:Name'"):
        check_object("mine", name="--task", what="task")
