"""Time of a step by part: a stopwatch of named parts, of which exactly one runs at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch


@dataclasses.dataclass(frozen=True)
class Seconds:
    """A span on both clocks.

    Attributes:
        wall: seconds of the wall clock.
        cpu: processor seconds of this process, all threads together. Other processes on the machine hardly change
            them, so they serve for ratios of small differences; on a GPU only `wall` has a meaning.
    """

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall - other.wall, self.cpu - other.cpu)

    def on(self, clock: str) -> float:
        """Return the seconds on the clock `"wall"` or `"cpu"`."""
        return {"wall": self.wall, "cpu": self.cpu}[clock]


def now() -> Seconds:
    """Read both clocks, after the GPU (if there is one) has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Seconds(time.perf_counter(), time.process_time())


class Stopwatch:
    """Splits a span into parts; a part that starts inside another interrupts it, so that nothing counts twice.

    Attributes:
        rest: name of the part for the time outside all others.
        parts: seconds of each part so far.
    """

    def __init__(self, rest: str = "rest") -> None:
        self.rest = rest
        self.parts: dict[str, Seconds] = defaultdict(Seconds)
        self._running: list[str] = []
        self._since = Seconds()

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """Measure a span; parts count only inside it."""
        self.parts.clear()
        self._since = now()
        self._running = [self.rest]
        try:
            yield
        finally:
            self._charge()
            self._running = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count a span within `run` as `name`, without the parts inside it."""
        if not self._running:
            yield
            return
        self._charge()
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def switch(self, name: str) -> None:
        """Count the rest of the innermost part as `name`, at a border that is not a function call."""
        if self._running:
            self._charge()
            self._running[-1] = name

    def watched(self, inner: Callable[..., Any], part: str | Callable[[], str]) -> Callable[..., Any]:
        """Wrap `inner`, so that every call counts as `part`, or as the name that `part` returns then."""

        @functools.wraps(inner)
        def outer(*args: Any, **kwargs: Any) -> Any:
            with self.part(part() if callable(part) else part):
                return inner(*args, **kwargs)

        return outer

    def watch(self, owner: Any, attribute: str, part: str | Callable[[], str]) -> None:
        """Replace `owner.attribute` by its `watched` version."""
        setattr(owner, attribute, self.watched(getattr(owner, attribute), part))

    @property
    def running(self) -> str | None:
        """The name of the part that runs now."""
        return self._running[-1] if self._running else None

    def _charge(self) -> None:
        moment = now()
        self.parts[self._running[-1]] += moment - self._since
        self._since = moment
