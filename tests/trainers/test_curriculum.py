"""The order of a curriculum is the order that GRPO trains on, in an unbroken run and in a resumed one."""

import json
from pathlib import Path

import pytest

from aurora_rl.data.curriculum import PassRate, by_pass_rates
from aurora_rl.data.sample import AVSample
from aurora_rl.trainers.resumable import ResumableTrainer
from tests.trainers.test_resume import Kill


@pytest.fixture
def ordered(train_samples: list[AVSample]) -> list[AVSample]:
    """Eight rows from easy to hard."""
    rates = {(row.uid, row.row): PassRate(1 + index % 8, 16) for index, row in enumerate(train_samples)}
    return by_pass_rates(train_samples[:8], rates, order="easy_to_hard")


def test_rows_are_trained_on_in_their_order_through_a_kill(make_grpo, ordered, tmp_path: Path) -> None:
    rewarded: list[str] = []

    def noted(completions: list, uid: list[str], **columns: object) -> list[float]:
        rewarded.extend(dict.fromkeys(uid))
        return [float(index % 2) for index in range(len(completions))]

    options = {"rewards": [noted], "samples": ordered, "max_steps": 4, "shuffle_dataset": False}
    options |= {"per_device_train_batch_size": 4, "num_generations": 2, "save_strategy": "steps", "save_steps": 1}
    trainer = make_grpo(**options)
    assert isinstance(trainer, ResumableTrainer)
    trainer.train()
    expected = [row.uid for row in ordered]
    assert rewarded == expected
    predicted = [log["dead_groups/predicted"] for log in trainer.state.log_history if "loss" in log]
    assert len(predicted) == 4 and predicted != sorted(predicted, reverse=True)
    rewarded.clear()
    with pytest.raises(KeyboardInterrupt):
        make_grpo(**options, output_dir=str(tmp_path / "killed"), callbacks=[Kill(3)]).train()
    make_grpo(**options, output_dir=str(tmp_path / "killed")).train(resume_from_checkpoint=True)
    assert rewarded[:4] == expected[:4] and rewarded[-4:] == expected[-4:]
    assert json.loads(ordered[0].extra)["passes"] == 8
