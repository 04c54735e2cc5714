"""The benchmark of scores, at toy size: what it times is what it says."""

import json
from pathlib import Path

import pytest
import torch

from aurora_rl.metrics import f_measure_curve
from benchmarks.f_measure import SPLIT_ROWS, disc, main, passes_over_thresholds, soft, table_rows


def test_both_ways_give_one_curve():
    truth = torch.from_numpy(disc((40, 30), 1))[None]
    probs = torch.from_numpy(soft(truth[0].numpy(), 1))[None]
    assert torch.allclose(passes_over_thresholds(probs, truth).double(), f_measure_curve(probs, truth), atol=1e-6)


def test_whole_benchmark_has_the_rows_of_the_official_table():
    rows = list(table_rows(1.0))
    assert len(rows) == 4972
    assert {split: sum(row[2] == split for row in rows) for split in SPLIT_ROWS} == SPLIT_ROWS


def test_generated_benchmark_is_scored(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    options = ["--scale", "0.001", "--repeats", "1", "--num_workers", "1", "--output", str(tmp_path / "out.json")]
    main(options)
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert numbers["rows"] == 2 + 2 + 1
    assert numbers["f_difference"] < 1e-6
    assert "test_n" in capfd.readouterr().out
