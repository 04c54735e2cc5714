import asyncio
import functools
import subprocess
import sys

import numpy as np
import pytest
import torch

from aurora_rl.rewards import Deferred, RewardError, guard_reward_func, load_reward_func

COLUMNS = {"uid": ["cat_1", "cat_1", "dog_2"], "row": [7, 7, 9]}


def length_reward(prompts, completions, **columns):
    return [float(len(completion)) for completion in completions]


async def slow_reward(prompts, completions, **columns):
    await asyncio.sleep(10)


class ScaleReward:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, prompts, completions, **columns):
        return [self.scale] * len(completions)


class AsyncReward:
    async def __call__(self, prompts, completions, **columns):
        return [0.5] * len(completions)


def _answering(answer):
    def some_reward(prompts, completions, **columns):
        return answer

    return some_reward


def _call(func, **columns):
    return func(prompts=["p"] * 3, completions=["a", "bb", ""], **(columns or COLUMNS))


def _write(path, text):
    path.write_text(text)
    return str(path)


# Loading


def test_a_function_is_loaded_from_a_module():
    func = load_reward_func("reward_fns.mask_iou:mask_iou_reward")
    assert func.__name__ == "mask_iou_reward"


def test_a_function_is_loaded_from_a_file(tmp_path):
    path = _write(tmp_path / "mine.py", "def my_reward(prompts, completions, **columns):\n    return [0.25]\n")
    assert load_reward_func(f"{path}:my_reward")(prompts=["p"], completions=["c"]) == [0.25]


def test_two_functions_of_one_file_share_its_state(tmp_path):
    path = _write(tmp_path / "mine.py", "calls = []\ndef a(**c):\n    calls.append(1)\ndef b(**c):\n    return calls\n")
    load_reward_func(f"{path}:a")()
    assert load_reward_func(f"{path}:b")() == [1]


def test_files_of_one_name_do_not_collide(tmp_path):
    rewards = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        path = _write(tmp_path / folder / "mine.py", f"def f(**columns):\n    return '{folder}'\n")
        rewards.append(load_reward_func(f"{path}:f")())
    assert rewards == ["a", "b"]


def test_a_callable_is_returned_as_it_is():
    assert load_reward_func(length_reward) is length_reward


def test_an_instance_takes_the_name_its_module_gives_it():
    func = load_reward_func("reward_fns.format:answer_format_reward")
    assert func.__name__ == "answer_format_reward"
    assert func(prompts=["p"], completions=["It is [SEG]."]) == [1.0]


@pytest.mark.parametrize("spec", ["mask_iou_reward", "reward_fns.mask_iou:", ":f", ""])
def test_a_name_without_module_or_function_is_refused(spec):
    with pytest.raises(RewardError, match="write 'package.module:function' or 'path/to/file.py:function'"):
        load_reward_func(spec)


@pytest.mark.parametrize("module", ["no_such_package.rewards", "reward_fns.no_such_module"])
def test_a_missing_module_is_named(module):
    with pytest.raises(RewardError, match=r"no module named '(no_such_package|reward_fns\.no_such_module)'"):
        load_reward_func(f"{module}:f")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RewardError, match=r"mine\.py' does not exist"):
        load_reward_func(f"{tmp_path}/mine.py:f")


def test_a_missing_function_is_named_with_those_there_are():
    with pytest.raises(RewardError, match="has no 'iou_reward'.*it has .*mask_iou_reward"):
        load_reward_func("reward_fns.mask_iou:iou_reward")


@pytest.mark.parametrize(
    ("attribute", "kind"), [("FINAL_SENTENCE", "str"), ("ParsedCompletion", "type")], ids=["value", "class"]
)
def test_what_is_no_function_is_refused(attribute, kind):
    with pytest.raises(RewardError, match=f"is a {kind}, expected a function"):
        load_reward_func(f"aurora_rl.tasks.completions:{attribute}")


def test_a_module_missing_inside_the_reward_module_keeps_its_own_error(tmp_path, monkeypatch):
    _write(tmp_path / "needs_more.py", "import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        load_reward_func("needs_more:f")


def test_a_file_that_fails_to_load_is_tried_again(tmp_path):
    path = _write(tmp_path / "mine.py", "raise KeyError('first try')\n")
    with pytest.raises(KeyError, match="first try"):
        load_reward_func(f"{path}:f")
    _write(tmp_path / "mine.py", "def f(**columns):\n    return 'second try'\n")
    assert load_reward_func(f"{path}:f")() == "second try"


# Guarding


def test_good_rewards_pass_as_floats():
    assert _call(guard_reward_func(length_reward)) == [1.0, 2.0, 0.0]
    assert _call(guard_reward_func(_answering((True, np.float32(0.5), torch.tensor(0.25))))) == [1.0, 0.5, 0.25]
    assert _call(guard_reward_func(_answering(torch.tensor([1.0, 0.0, 0.5])))) == [1.0, 0.0, 0.5]


def test_none_passes_as_does_not_apply():
    assert _call(guard_reward_func(_answering([None, 0.5, None]))) == [None, 0.5, None]


def test_the_name_stays_for_the_metrics():
    assert guard_reward_func(length_reward).__name__ == "length_reward"
    assert guard_reward_func(slow_reward).__name__ == "slow_reward"
    assert guard_reward_func(functools.partial(length_reward, extra=1)).__name__ == "length_reward"
    assert guard_reward_func(ScaleReward(0.5)).__name__ == "ScaleReward"
    assert guard_reward_func(load_reward_func("reward_fns.format:format_reward")).__name__ == "format_reward"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.tensor(torch.nan), "1.0", [1.0], 1j])
def test_what_is_no_finite_number_names_function_and_sample(value):
    guarded = guard_reward_func(_answering([0.0, 0.0, value]))
    with pytest.raises(RewardError, match=r"'some_reward' returned .* for sample 'dog_2#9' \(completion 2\)"):
        _call(guarded)


@pytest.mark.parametrize("answer", [[], [1.0], [1.0] * 4])
def test_a_wrong_number_of_rewards_is_refused(answer):
    guarded = guard_reward_func(_answering(answer))
    with pytest.raises(RewardError, match=rf"'some_reward' returned {len(answer)} rewards for 3 .*'cat_1#7'"):
        _call(guarded)


@pytest.mark.parametrize("answer", [None, 1.0, "abc", {"a": 1}, torch.tensor(1.0)])
def test_an_answer_that_is_no_list_is_refused(answer):
    with pytest.raises(RewardError, match=r"'some_reward' returned .*, expected a list of 3 numbers"):
        _call(guard_reward_func(_answering(answer)))


def test_an_exception_names_function_and_samples_and_keeps_its_cause():
    def broken_reward(prompts, completions, **columns):
        return [1 / len(completion) for completion in completions]

    with pytest.raises(
        RewardError, match=r"'broken_reward' raised ZeroDivisionError.*'cat_1#7', sample 'dog_2#9'"
    ) as e:
        _call(guard_reward_func(broken_reward))
    assert isinstance(e.value.__cause__, ZeroDivisionError)


def test_a_missing_column_is_an_error_that_names_it():
    def needs_masks(prompts, completions, *, pred_masks, **columns):
        return [1.0] * len(completions)

    with pytest.raises(RewardError, match="'needs_masks' raised TypeError.*pred_masks"):
        _call(guard_reward_func(needs_masks))


def test_samples_without_row_or_uid_are_named_by_what_there_is():
    guarded = guard_reward_func(_answering([0.0, float("nan"), 0.0]))
    with pytest.raises(RewardError, match=r"for sample 'b' \(completion 1\)"):
        _call(guarded, uid=["a", "b", "c"])
    with pytest.raises(RewardError, match="for completion 1:"):
        _call(guarded, other=["x"] * 3)


def test_a_long_batch_is_named_by_its_first_samples():
    with pytest.raises(RewardError, match="completion 3 and 5 more"):
        guard_reward_func(_answering([]))(prompts=[""] * 9, completions=[""] * 9)


# Async rewards


def test_an_async_reward_is_awaited_and_checked():
    assert asyncio.run(_call(guard_reward_func(AsyncReward()))) == [0.5, 0.5, 0.5]

    async def nan_reward(prompts, completions, **columns):
        return [float("nan")] * len(completions)

    with pytest.raises(RewardError, match="'nan_reward' returned nan for sample 'cat_1#7'"):
        asyncio.run(_call(guard_reward_func(nan_reward)))


def test_an_async_reward_that_takes_too_long_is_named():
    guarded = guard_reward_func(slow_reward, timeout_s=0.01)
    with pytest.raises(RewardError, match=r"'slow_reward' raised TimeoutError: no answer within 0.01 s"):
        asyncio.run(_call(guarded))


def test_a_time_out_of_the_rewards_own_client_keeps_its_message():
    async def client_reward(prompts, completions, **columns):
        raise TimeoutError("judge model did not answer")

    with pytest.raises(RewardError, match="'client_reward' raised TimeoutError: judge model did not answer"):
        asyncio.run(_call(guard_reward_func(client_reward)))


def test_trl_sees_the_same_kind_and_name_of_function():
    trl_utils = pytest.importorskip("trl.trainer.utils")
    for func in (length_reward, slow_reward, ScaleReward(1.0), AsyncReward(), functools.partial(slow_reward, extra=1)):
        guarded = guard_reward_func(func)
        assert trl_utils.is_async_callable(guarded) == trl_utils.is_async_callable(func)
        assert trl_utils.get_callable_name(guarded) == trl_utils.get_callable_name(func)


def test_a_named_async_instance_stays_async(tmp_path):
    path = _write(
        tmp_path / "mine.py",
        "class Judge:\n    async def __call__(self, completions, **columns):\n        return [1.0]\njudge = Judge()\n",
    )
    judge = load_reward_func(f"{path}:judge")
    assert judge.__name__ == "judge"
    assert asyncio.run(guard_reward_func(judge)(prompts=["p"], completions=["c"])) == [1.0]


def test_a_reward_model_is_left_to_trl():
    model = torch.nn.Linear(1, 1)
    assert guard_reward_func(model) is model


def test_loading_rewards_does_not_import_trl():
    code = "import sys, aurora_rl.rewards, reward_fns.reasoning_consistency; sys.exit('trl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- columns that are computed when they are read -------------------------------------------------------------------


class Squares:
    """Deferred entries, and which of them were computed."""

    def __init__(self):
        self.computed = []

    def column(self):
        return [Deferred(lambda n=n: self.computed.append(n) or n * n) for n in (1, 2)] + [None]


def test_a_deferred_column_is_not_computed_for_a_function_that_does_not_read_it():
    squares = Squares()
    guarded = guard_reward_func(length_reward)
    assert guarded(prompts=[""] * 3, completions=["a", "bb", ""], probs=squares.column()) == [1.0, 2.0, 0.0]
    assert squares.computed == []


@pytest.mark.parametrize("is_async", [False, True])
def test_a_function_that_names_a_deferred_column_gets_a_list_of_what_was_meant(is_async):
    squares, seen = Squares(), []

    def named(prompts, completions, *, probs, **columns):
        seen.append(probs)
        return [0.0] * 3

    async def named_async(prompts, completions, *, probs, **columns):
        return named(prompts, completions, probs=probs)

    answer = guard_reward_func(named_async if is_async else named)(
        prompts=[""] * 3, completions=[""] * 3, probs=squares.column()
    )
    assert (asyncio.run(answer) if is_async else answer) == [0.0] * 3
    assert seen == [[1, 4, None]] and isinstance(seen[0], list)


def test_a_deferred_column_among_others_reads_like_a_list_and_computes_an_entry_once():
    squares, column = Squares(), []

    def reads_one(prompts, completions, **columns):
        column.append(columns["probs"])
        return [0.0 if entry is None else float(entry) for entry in columns["probs"][1:]] + [float(columns["probs"][1])]

    probs = squares.column()
    guarded = guard_reward_func(reads_one)
    assert guarded(prompts=[""] * 3, completions=[""] * 3, probs=probs) == [4.0, 0.0, 4.0]
    assert squares.computed == [2]
    assert guarded(prompts=[""] * 3, completions=[""] * 3, probs=probs) == [4.0, 0.0, 4.0]
    assert squares.computed == [2], "a second function computes it anew"
    assert len(column[0]) == 3 and list(column[0]) == [1, 4, None] and column[0][-1] is None
    with pytest.raises(IndexError):
        column[0][3]
