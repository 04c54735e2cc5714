"""Load a reward function by its name in a recipe, and guard it so that a bad reward stops the run.

A reward function is a plain TRL callable; `reward_fns/README.md` shows how to write one. The trainer loads each with
`load_reward_func` and wraps it with `guard_reward_func`: otherwise a NaN or a missing row would silently spoil the
advantages of a whole group.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import numbers
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import torch

from aurora_rl.named.objects import NamedObjectError, load_object

_MAX_NAMED_SAMPLES = 4

AnyFunc = TypeVar("AnyFunc", bound=Callable[..., Any])


class RewardError(RuntimeError):
    """A reward function could not be loaded, or its result cannot be used."""


class RewardFunc(Protocol):
    """A reward function as TRL calls it: `f(prompts=..., completions=..., **columns)`.

    It is called once per batch of R completions, with keyword arguments only, each a list of R entries: `prompts`,
    `completions` (text or chat messages), `completion_ids`, every column of the dataset row (`uid`, `row`, `category`,
    `reference`, ...) and the trainer's own columns: `pred_masks`, `mask_probs`, `gt_masks`, `mask_counts`,
    `head_score`, `loudness_dbfs`, `sample`, `answers` (completions as the task reads them), `listening_gain` and
    `looking_gain` where a function names them; and TRL's `trainer_state`, `log_metric`, `log_extra`, and `environments`
    where rollouts may call tools.

    Returns:
        R numbers; None where the reward does not apply to a row. An async function returns an awaitable of them.
    """

    def __call__(self, *args: Any, **columns: Any) -> Sequence[float | None] | Awaitable[Sequence[float | None]]:
        """Score a batch of completions."""


class Deferred:
    """A column's entry that is computed when the first reward function reads it, once for all functions.

    Args:
        compute: function that returns the entry.
    """

    def __init__(self, compute: Callable[[], Any]) -> None:
        self._compute = compute

    @functools.cached_property
    def value(self) -> Any:
        """The entry."""
        return self._compute()


class DeferredColumn(Sequence[Any]):
    """A column with `Deferred` entries that reads like a list; a function gets it in its `**columns`.

    Args:
        entries: the column's entries, `Deferred` or not.
    """

    def __init__(self, entries: Sequence[Any]) -> None:
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: Any) -> Any:
        found = self._entries[index]
        return [_entry(entry) for entry in found] if isinstance(index, slice) else _entry(found)


def load_reward_func(spec: str | Callable[..., Any]) -> Callable[..., Any]:
    """Load the reward function that a recipe names.

    Args:
        spec: `"package.module:function"`, `"path/to/file.py:function"`, or a callable, which is returned unchanged.
            An instance of a callable class takes its name in the module, so that TRL logs `rewards/<that name>/mean`.

    Returns:
        The callable.

    Raises:
        RewardError: if the module or file is not found, lacks the attribute, or the attribute is not callable.
    """
    if callable(spec):
        return spec
    try:
        func = load_object(str(spec), what="reward function")
    except NamedObjectError as error:
        raise RewardError(str(error)) from error
    if inspect.isclass(func) or not callable(func):
        raise RewardError(f"{spec!r} is a {type(func).__name__}, expected a function or a callable instance")
    return func if hasattr(func, "__name__") else _forward(func, name=str(spec).rpartition(":")[2])


def load_guarded(
    reward_funcs: str | Callable[..., Any] | Sequence[str | Callable[..., Any]],
    *,
    timeout_s: float,
    several_sets: bool = False,
    of_sets: Sequence[Mapping[str, bool]] | None = None,
) -> list[Callable[..., Any]]:
    """Load the reward functions of a run, guarded by `guard_reward_func` and run by `beside_services`.

    Args:
        reward_funcs: names or callables, one or several.
        timeout_s: see `guard_reward_func`.
        several_sets: whether the run reads several data sets.
        of_sets: whether each function is for a data set then, see `call_for_some_rows`; None if no set names rewards.

    Raises:
        RewardError: if one cannot be loaded.
    """
    specs = [reward_funcs] if isinstance(reward_funcs, str) or callable(reward_funcs) else list(reward_funcs)
    guarded = [guard_reward_func(load_reward_func(spec), timeout_s=timeout_s) for spec in specs]
    if not several_sets:
        return beside_services(guarded)
    pairs = zip(guarded, of_sets or [{}] * len(guarded), strict=True)
    return beside_services([call_for_some_rows(func, is_for) for func, is_for in pairs])


def beside_services(funcs: Sequence[Callable[..., Any]]) -> list[Callable[..., Any]]:
    """Let functions compute while others wait for a service.

    TRL begins the async functions after the last of the others. Where one is async, the others become async too: a
    thread runs them, in their order.

    Args:
        funcs: results of `guard_reward_func` or `call_for_some_rows`.
    """
    if not any(map(_is_async, funcs)):
        return list(funcs)
    thread = ThreadPoolExecutor(1, "rewards")
    stays = [_is_async(func) or isinstance(func, torch.nn.Module) for func in funcs]
    return [func if stay else _in_thread(func, thread) for func, stay in zip(funcs, stays, strict=True)]


def _in_thread(func: Callable[..., Any], thread: Executor) -> Callable[..., Any]:
    async def awaited(**columns: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(thread, functools.partial(func, **columns))

    return _like(awaited, func, _name(func))


def reads(answer_type: type) -> Callable[[AnyFunc], AnyFunc]:
    """Mark a reward function as one that reads the answers of one task alone.

    In a run on several data sets it answers None for the rows of other tasks, without being called for them. In a run
    on one task it is called for all rows, and tells that they are not for it.

    Args:
        answer_type: class of the task's answers.
    """

    def mark(func: AnyFunc) -> AnyFunc:
        func.reads = answer_type  # type: ignore[attr-defined]
        return func

    return mark


def names_column(func: Callable[..., Any], column: str) -> bool:
    """Tell whether a reward function names a column among its parameters, and so asks for what it costs.

    Args:
        func: a loaded function, guarded or not.
        column: name of the column.
    """
    return column in inspect.signature(func).parameters


def call_for_some_rows(func: Callable[..., Any], is_for: Mapping[str, bool]) -> Callable[..., Any]:
    """Wrap a guarded reward function for a run on several data sets: rows that it is not for have the reward None.

    Args:
        func: result of `guard_reward_func`.
        is_for: whether it is for a data set, by the set's name. It is for the rows of a set that is not there if it
            reads their answers (see `reads`).
    """
    answer_type = getattr(func, "reads", None)

    def select(columns: Mapping[str, Any]) -> list[int]:
        pairs = zip(columns["answers"], columns["dataset"], strict=True)
        return [
            index
            for index, (answer, dataset) in enumerate(pairs)
            if is_for.get(dataset, answer_type is None or isinstance(answer, answer_type))
        ]

    def only(kept: Sequence[int], columns: Mapping[str, Any]) -> dict[str, Any]:
        count = len(columns["completions"])
        chosen = {name: _rows_of(column, kept, count) for name, column in columns.items()}
        if log_extra := columns.get("log_extra"):  # the table of completions has a row for every completion
            chosen["log_extra"] = lambda column, values: log_extra(column, _spread(values, kept, count))
        return chosen

    if _is_async(func):

        async def some_async(**columns: Any) -> list[float | None]:
            kept = select(columns)
            rewards = await func(**only(kept, columns)) if kept else []
            return _spread(rewards, kept, len(columns["completions"]))

        wrapper: Callable[..., Any] = some_async
    else:

        def some(**columns: Any) -> list[float | None]:
            kept = select(columns)
            rewards = func(**only(kept, columns)) if kept else []
            return _spread(rewards, kept, len(columns["completions"]))

        wrapper = some
    return _like(wrapper, func, _name(func))


def _rows_of(column: Any, kept: Sequence[int], count: int) -> Any:
    """Select rows of a column; what has no entry a row, such as TRL's `trainer_state`, is left as it is."""
    return [column[index] for index in kept] if isinstance(column, list) and len(column) == count else column


def _spread(values: Sequence[Any], kept: Sequence[int], count: int) -> list[Any]:
    """Put the values of some rows at their places among all rows, None at the others."""
    by_row = dict(zip(kept, values, strict=True))
    return [by_row.get(index) for index in range(count)]


def guard_reward_func(func: Callable[..., Any], *, timeout_s: float = 60.0) -> Callable[..., Any]:
    """Wrap a reward function so that a failure names the function and the sample instead of spoiling the advantages.

    Args:
        func: a reward function, sync or async.
        timeout_s: seconds an async function may take for one batch. A sync function is not timed.

    Returns:
        A function of the same kind (sync or async) and `__name__` that returns a list of float or None. A
        `torch.nn.Module` (a reward model) is returned unchanged, since TRL runs it itself.

    Raises:
        RewardError: from the wrapped function, if it raises, takes too long, or returns anything but one finite
            number or None per completion.
    """
    if isinstance(func, torch.nn.Module):
        return func
    name, named = _name(func), frozenset(inspect.signature(func).parameters)

    def guarded(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        try:
            rewards = func(prompts=prompts, completions=completions, **_readable(columns, named))
        except Exception as error:
            raise _failure(name, error, columns, len(completions)) from error
        return _checked(name, rewards, columns, len(completions))

    async def guarded_async(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                rewards = await func(prompts=prompts, completions=completions, **_readable(columns, named))
        except Exception as error:
            # The function's own TimeoutError (an HTTP client's, say) is a failure like any other.
            late = TimeoutError(f"no answer within {timeout_s:g} s; make it faster or raise timeout_s")
            raise _failure(name, late if limit.expired() else error, columns, len(completions)) from error
        return _checked(name, rewards, columns, len(completions))

    wrapper: Callable[..., Any] = guarded_async if _is_async(func) else guarded
    return _like(wrapper, func, name)


def _entry(entry: Any) -> Any:
    return entry.value if isinstance(entry, Deferred) else entry


def _readable(columns: Mapping[str, Any], named: frozenset[str]) -> dict[str, Any]:
    """Compute the deferred entries of the columns that the function names; other columns compute theirs when read."""
    readable = dict(columns)
    for name, entries in columns.items():
        if isinstance(entries, list) and any(isinstance(entry, Deferred) for entry in entries):
            readable[name] = [_entry(entry) for entry in entries] if name in named else DeferredColumn(entries)
    return readable


def _forward(func: Callable[..., Any], *, name: str) -> Callable[..., Any]:
    """Wrap `func` in a function that has a name and is async if `func` is."""
    if _is_async(func):

        async def named_async(*args: Any, **columns: Any) -> Any:
            return await func(*args, **columns)

        wrapper: Callable[..., Any] = named_async
    else:

        def named(*args: Any, **columns: Any) -> Any:
            return func(*args, **columns)

        wrapper = named
    return _like(wrapper, func, name)


def _like(wrapper: Callable[..., Any], func: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Give a wrapper its name, and what the function says of itself."""
    wrapper.__name__ = wrapper.__qualname__ = name
    wrapper.__doc__ = func.__doc__
    wrapper.__signature__ = inspect.signature(func)  # type: ignore[attr-defined]
    if (answer_type := getattr(func, "reads", None)) is not None:
        wrapper.reads = answer_type  # type: ignore[attr-defined]
    return wrapper


def _unwrap(func: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(func, functools.partial):
        func = func.func
    return func


def _name(func: Callable[..., Any]) -> str:
    """Return the name under which TRL logs a callable (trl.trainer.utils.get_callable_name)."""
    unwrapped = _unwrap(func)
    return getattr(unwrapped, "__name__", type(unwrapped).__name__)


def _is_async(func: Callable[..., Any]) -> bool:
    """Tell whether TRL awaits a callable (trl.trainer.utils.is_async_callable)."""
    unwrapped = _unwrap(func)
    return inspect.iscoroutinefunction(unwrapped) or inspect.iscoroutinefunction(type(unwrapped).__call__)


def _checked(name: str, rewards: Any, columns: Mapping[str, Any], num_completions: int) -> list[float | None]:
    if hasattr(rewards, "tolist"):  # a tensor or an array
        rewards = rewards.tolist()
    if not isinstance(rewards, (list, tuple)):
        raise RewardError(
            f"reward function '{name}' returned a {type(rewards).__name__}, expected a list of "
            f"{num_completions} numbers for {_samples(columns, num_completions)}"
        )
    if len(rewards) != num_completions:
        raise RewardError(
            f"reward function '{name}' returned {len(rewards)} rewards for {num_completions} completions of "
            f"{_samples(columns, num_completions)}: return exactly one per completion, None where it does not apply"
        )
    return [_checked_reward(name, reward, columns, index) for index, reward in enumerate(rewards)]


def _checked_reward(name: str, reward: Any, columns: Mapping[str, Any], index: int) -> float | None:
    if reward is None:
        return None
    if isinstance(reward, torch.Tensor) and reward.numel() == 1:
        reward = reward.item()
    if isinstance(reward, numbers.Real) and math.isfinite(reward):
        return float(reward)
    raise RewardError(
        f"reward function '{name}' returned {reward!r} for {_sample(columns, index)}: expected a finite number, "
        "or None where the reward does not apply"
    )


def _failure(name: str, error: Exception, columns: Mapping[str, Any], num_completions: int) -> RewardError:
    return RewardError(
        f"reward function '{name}' raised {type(error).__name__}: {error} (for {_samples(columns, num_completions)})"
    )


def _sample(columns: Mapping[str, Any], index: int) -> str:
    """Return `sample 'uid#row'`, or the completion's place in the batch where the columns hold no uid."""
    uids, rows = columns.get("uid"), columns.get("row")
    if uids is None or index >= len(uids):
        return f"completion {index}"
    key = uids[index] if rows is None else f"{uids[index]}#{rows[index]}"
    return f"sample '{key}' (completion {index})"


def _samples(columns: Mapping[str, Any], num_completions: int) -> str:
    """Name the samples of a batch, each once, at most four of them."""
    names = [_sample(columns, index).split(" (")[0] for index in range(num_completions)]
    distinct = list(dict.fromkeys(names))
    more = len(distinct) - _MAX_NAMED_SAMPLES
    return ", ".join(distinct[:_MAX_NAMED_SAMPLES]) + (f" and {more} more" if more > 0 else "")
