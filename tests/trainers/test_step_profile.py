"""Where the time of a step goes: parts that do not overlap, a table and a trace, and seams as before afterwards."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from aurora_rl.trainers import step_profile
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.step_profile import PARTS, PartClock, parts_table

MakeGRPO = Callable[..., AuroraGRPOTrainer]


def test_a_profiled_step_leaves_a_table_and_a_trace(make_grpo: MakeGRPO, tmp_path: Path) -> None:
    """Of one step of the two that are asked for, since the run ends."""
    trainer = make_grpo(script=None, profile_steps=2, max_steps=2, num_iterations=2, steps_per_generation=1)
    with trainer.timed_part("sync_weights"):
        pass
    [seconds_of_sync] = trainer._metrics[trainer._mode]["seconds/sync_weights"]
    assert seconds_of_sync >= 0
    trainer.train()
    rows = [line.strip("| ").split(" | ") for line in (tmp_path / "grpo/profile/parts.md").read_text().splitlines()[2:]]
    seconds = {part: float(spent) for part, spent, _ in rows}
    assert list(seconds) == [*PARTS, "**whole step**"]
    assert all(seconds[part] > 0 for part in ("forward", "backward", "optimizer"))
    assert seconds["generation"] == seconds["weight sync"] == 0  # the second step trains on the rollouts of the first
    assert seconds.pop("**whole step**") == pytest.approx(sum(seconds.values()), abs=0.01)
    with gzip.open(tmp_path / "grpo/profile/trace.json.gz") as file:
        names = {event["name"] for event in json.load(file)["traceEvents"]}
    assert {"forward", "backward", "optimizer", "aten::linear"} <= names
    assert "_compute_loss" not in vars(trainer) and "backward" not in vars(trainer.accelerator)


def test_a_part_interrupts_the_one_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    monkeypatch.setattr(step_profile, "_now", lambda: next(times))
    clock = PartClock()
    with clock.part("generation"), clock.part("weight sync"):
        pass
    seconds = clock.read()
    assert {part: spent for part, spent in seconds.items() if spent} == {
        "generation": 2.0 + 4.0,
        "weight sync": 3.0,
        "rest": 1.0 + 5.0,
    }


def test_the_table_has_seconds_a_step_and_shares() -> None:
    table = parts_table({"forward": 3.0, "backward": 9.0}, 3).splitlines()
    assert table[2:] == ["| forward | 1.000 | 25% |", "| backward | 3.000 | 75% |", "| **whole step** | 4.000 | 100% |"]
