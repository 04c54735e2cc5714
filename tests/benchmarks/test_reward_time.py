"""The benchmark of rewards, at toy size: both ways earn the same."""

import json
from pathlib import Path

import pytest

from benchmarks.reward_time import main


def test_both_ways_give_one_reward(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    main(["--shape", "2", "40", "60", "--repeats", "1", "--output", str(tmp_path / "out.json")])
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert numbers["difference"] < 1e-6
    assert numbers["before_s"] >= 0 and numbers["now_s"] >= 0
    assert "CPU seconds a completion" in capfd.readouterr().out
