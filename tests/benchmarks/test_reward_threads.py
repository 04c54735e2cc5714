"""The benchmark of rewards in threads, at toy size: all ways earn the same."""

import json
from pathlib import Path

import pytest

from benchmarks.reward_threads import REWARDS, WAYS, main


def test_threads_change_no_reward_and_each_is_measured(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(["--shape", "2", "40", "60", "--rows", "17", "--rounds", "1", "--output", str(tmp_path / "out.json")])
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert numbers.keys() == {*REWARDS, "all shipped", "all"}
    assert set(numbers["all"]) == set(WAYS) and numbers["all"]["rows"]["wall_s"] > 0
    assert "| all shipped |" in capfd.readouterr().out
