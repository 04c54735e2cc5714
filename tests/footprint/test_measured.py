"""The estimate against steps that are really made; `python tools/measure_footprint.py` prints all settings."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from aurora_rl.config import DataArguments
from tools.measure_footprint import Measured, measure, prepared

#: What the issue allows is 25 %; the settings that were measured are off by 4 % at most.
TOLERANCE = 0.1


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, DataArguments]]:
    with prepared(tmp_path_factory.mktemp("footprint")) as model_and_data:
        yield model_and_data


@pytest.fixture(scope="module")
def results(on_disk: tuple[Path, DataArguments]) -> dict[str, tuple[Measured, Measured]]:
    """Estimate and measurement of settings that differ in every part."""
    settings = ("full, batch 4", "full, batch 8, SGD", "LoRA, batch 8, checkpointing")
    return {setting: measure(setting, *on_disk) for setting in settings}


def test_weights_gradients_and_optimiser_state_are_exact(results: dict[str, tuple[Measured, Measured]]) -> None:
    for estimate, found in results.values():
        assert dataclasses.replace(estimate, step=0) == dataclasses.replace(found, step=0)


def test_the_peak_of_a_step_is_near(results: dict[str, tuple[Measured, Measured]]) -> None:
    for estimate, found in results.values():
        assert estimate.step == pytest.approx(found.step, rel=TOLERANCE)


def test_control_the_estimate_of_another_setting_is_far(results: dict[str, tuple[Measured, Measured]]) -> None:
    _, found = results["full, batch 8, SGD"]
    for other in ("full, batch 4", "LoRA, batch 8, checkpointing"):
        assert results[other][0].step != pytest.approx(found.step, rel=2.5 * TOLERANCE)
        assert results[other][0].optimiser != found.optimiser
