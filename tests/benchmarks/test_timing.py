from types import SimpleNamespace

import pytest
import torch

from benchmarks import timing
from benchmarks.contenders import _mark_end_of_mask_backward
from benchmarks.memory import peak_memory
from benchmarks.timing import Seconds, Stopwatch


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> Seconds:
        return Seconds(self.seconds, self.seconds / 2)

    def work(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "now", clock.now)
    return clock


def test_a_part_inside_another_interrupts_it_and_all_parts_sum_to_the_whole(clock):
    stopwatch = Stopwatch()
    with stopwatch.run():
        clock.work(1)
        with stopwatch.part("outer"):
            clock.work(2)
            with stopwatch.part("inner"):
                clock.work(4)
            clock.work(8)
        clock.work(16)
    assert stopwatch.parts == {"rest": Seconds(17, 8.5), "outer": Seconds(10, 5), "inner": Seconds(4, 2)}


def test_a_part_that_raises_gives_the_time_back_to_the_one_around_it(clock):
    stopwatch = Stopwatch()
    with stopwatch.run():
        with pytest.raises(KeyError), stopwatch.part("inner"):
            clock.work(1)
            raise KeyError
        clock.work(2)
    assert stopwatch.parts == {"inner": Seconds(1, 0.5), "rest": Seconds(2, 1)}


def test_outside_a_span_nothing_counts_and_a_new_span_starts_from_nothing(clock):
    stopwatch = Stopwatch()
    work = SimpleNamespace(task=clock.work)
    stopwatch.watch(work, "task", lambda: "even" if clock.seconds % 2 == 0 else "odd")
    work.task(1)
    assert not stopwatch.parts
    for _ in range(2):
        with stopwatch.run():
            work.task(5)
    assert stopwatch.parts["even"].wall == 5 and "odd" not in stopwatch.parts


def test_the_masks_part_of_a_backward_pass_ends_where_it_reaches_the_heads_input(clock):
    class Works(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, seconds):
            ctx.seconds = seconds
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            clock.work(ctx.seconds)
            return gradient, None

    class Head(torch.nn.Module):
        def forward(self, x):
            return Works.apply(x, 4)

    stopwatch, head = Stopwatch(), Head()
    _mark_end_of_mask_backward(head, stopwatch)
    language_model = Works.apply(torch.ones(3, requires_grad=True), 1)
    log_probs = Works.apply(language_model, 2)
    masks = head(language_model[:2])
    with stopwatch.run(), stopwatch.part("mask backward"):
        (masks.sum() + log_probs.sum()).backward()
    assert stopwatch.parts["mask backward"].wall == 4
    assert stopwatch.parts["backward"].wall == 3


def test_peak_memory_counts_what_was_freed_before_the_end():
    with peak_memory() as peak:
        block = torch.ones(50_000_000)  # 0.2 GB
        del block
    with peak_memory() as next_peak:
        torch.ones(5_000_000)  # 0.02 GB
    assert 0.19 < peak.gigabytes < 0.4
    assert 0.015 < next_peak.gigabytes < 0.1
