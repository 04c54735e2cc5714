"""The benchmark of reading ahead, at toy size."""

import json
from pathlib import Path

import pytest

from benchmarks.idle_share import WAYS, main


def test_both_ways_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = ["--steps", "2", "--rounds", "1", "--size", "64", "48", "--seconds", "0.5", "--completion_length", "2"]
    main([*toy, "--output", str(tmp_path / "out.json")])
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert list(numbers) == list(WAYS)
    for row in numbers.values():
        assert 0 < row["waited_s"] < row["step_s"]
        assert 0 < row["share"] < 1
    assert "| ahead |" in capsys.readouterr().out
