"""What is read of a trainer's log, and which charts are drawn of it."""

import json
from pathlib import Path

import pytest

from aurora_rl.report.curves import draw_curves, read_log_history

LOG_HISTORY = [{"step": 1, "loss": 0.5, "rewards/mask_iou_reward/mean": 0.25, "note": "text"}, {"step": 2, "loss": 0.4}]


def test_log_is_read_from_the_file_or_its_folder(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": LOG_HISTORY}))
    assert read_log_history(tmp_path) == read_log_history(tmp_path / "trainer_state.json") == LOG_HISTORY


def test_file_that_is_no_trainer_state_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text("[]")
    with pytest.raises(ValueError, match="no trainer state"):
        read_log_history(tmp_path)


def test_a_chart_has_the_numbers_that_were_logged_and_the_others_are_left_out() -> None:
    charts = dict(draw_curves(LOG_HISTORY, "SFT"))
    assert list(charts) == ["Loss", "Rewards by function"]
    assert "SFT: Loss. loss from 0.5 to 0.4." in charts["Loss"]
    assert "mask IoU from 0.25 to 0.25." in charts["Rewards by function"]


def test_several_data_sets_have_curves_of_their_own() -> None:
    log = [{"step": 1, "dataset/avs/reward": 0.5, "dataset/qa/reward": 1.5, "dataset/qa/accuracy": 0.25}]
    charts = dict(draw_curves(log, "GRPO"))
    assert list(charts) == ["Reward by data set", "Answers by data set, share right"]
    assert "avs from 0.5 to 0.5; qa from 1.5 to 1.5" in charts["Reward by data set"]
