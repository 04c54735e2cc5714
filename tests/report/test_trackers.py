"""What reaches a tracker, at the border of transformers' callbacks.

The trackers themselves are run in tests/trainers/test_eval_answers.py. Here a stub with the calls that are made of
Weights & Biases' library stands for it, which starts a process of its own.
"""

import inspect
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import PrinterCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from aurora_rl.report.trackers import SENDERS, Sheet, send_sheets

SOUND = np.array([0, 32767, -32767], dtype=np.int16)
SHEETS = [
    Sheet("samples/1", Image.new("RGB", (8, 6)), SOUND, "the <b>drum</b>\n# Look"),
    Sheet("samples/2", Image.new("RGB", (4, 6)), None, "silent"),
]


class StubWandb:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []

    def Image(self, data: Image.Image, caption: str) -> tuple[Any, ...]:  # noqa: N802
        return ("image", data.size, caption)

    def Audio(self, data: np.ndarray, caption: str, sample_rate: int) -> tuple[Any, ...]:  # noqa: N802
        return ("audio", data.dtype, sample_rate, caption)

    def log(self, metrics: dict[str, Any]) -> None:
        self.logged.append(metrics)


@pytest.fixture
def wandb() -> WandbCallback:
    callback = WandbCallback.__new__(WandbCallback)  # its constructor needs the library
    callback._wandb = StubWandb()
    return callback


def test_wandb_gets_pictures_and_sounds_on_the_axis_of_the_numbers(wandb: WandbCallback):
    send_sheets([PrinterCallback(), wandb], SHEETS, step=7)
    [logged] = wandb._wandb.logged
    assert logged == {
        "train/global_step": 7,
        "samples/1": ("image", (8, 6), SHEETS[0].caption),
        "samples/1/sound": ("audio", np.int16, 16_000, SHEETS[0].caption),
        "samples/2": ("image", (4, 6), "silent"),
    }


def test_a_tracker_that_fails_is_a_warning_and_the_next_one_is_told(wandb: WandbCallback, caplog):
    broken = WandbCallback.__new__(WandbCallback)
    broken._wandb = None
    send_sheets([broken, wandb], SHEETS, step=7)
    assert len(wandb._wandb.logged) == 1
    assert "WandbCallback took no samples of step 7" in caplog.text


def test_tensorboard_before_its_first_number_is_left_alone():
    callback = TensorBoardCallback.__new__(TensorBoardCallback)
    callback.tb_writer = None
    send_sheets([callback], SHEETS, step=0)


def test_callbacks_of_transformers_hold_their_trackers_under_these_names():
    """`send_sheets` reads private attributes."""
    for callback, attribute in {WandbCallback: "_wandb", TrackioCallback: "_trackio"}.items():
        assert f"self.{attribute} = " in inspect.getsource(callback.__init__)
    assert "self.tb_writer = " in inspect.getsource(TensorBoardCallback.__init__)
    assert set(SENDERS) == {TensorBoardCallback, WandbCallback, TrackioCallback}
