"""The estimate against steps that are really made; `python tools/measure_footprint.py` prints all settings."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from aurora_rl.assembly.arguments import DataArguments, ModelArguments
from aurora_rl.footprint.activations import estimate_sampling
from aurora_rl.footprint.launch import Launch
from aurora_rl.footprint.parameters import MetaModel, build_meta_model
from aurora_rl.footprint.workload import Workload
from aurora_rl.models.loading import LoadedModel, load_model
from tools.measure_footprint import FAMILIES, Measured, measure, prepared

#: The settings that were measured are off by 4 % at most.
TOLERANCE = 0.1
#: Of the operations; off by 7 % at most: with checkpointing, a layer's last product is not run again.
FLOPS_TOLERANCE = 0.1


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, DataArguments]]:
    with prepared(tmp_path_factory.mktemp("footprint")) as model_and_data:
        yield model_and_data


@pytest.fixture(scope="module")
def results(on_disk: tuple[Path, DataArguments]) -> dict[str, tuple[Measured, Measured]]:
    """Estimate and measurement of settings that differ in every part."""
    settings = ("full, batch 4", "full, batch 8, SGD", "LoRA, batch 8, checkpointing")
    settings += tuple(f"{name}, LoRA, batch 8" for name in FAMILIES)
    return {setting: measure(setting, *on_disk) for setting in settings}


def test_weights_gradients_and_optimiser_state_are_exact(results: dict[str, tuple[Measured, Measured]]) -> None:
    for estimate, found in results.values():
        assert dataclasses.replace(estimate, step=0, flops=0) == dataclasses.replace(found, step=0, flops=0)


def test_the_peak_of_a_step_is_near(results: dict[str, tuple[Measured, Measured]]) -> None:
    for estimate, found in results.values():
        assert estimate.step == pytest.approx(found.step, rel=TOLERANCE)


def test_the_operations_of_a_step_are_near(results: dict[str, tuple[Measured, Measured]]) -> None:
    for estimate, found in results.values():
        assert estimate.flops == pytest.approx(found.flops, rel=FLOPS_TOLERANCE)


def test_the_key_value_cache_is_that_of_generate(loaded: LoadedModel, meta: MetaModel, work: Workload) -> None:
    prompts = torch.full((work.generated_rows, work.prompt_tokens), 5)
    output = loaded.model.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        min_new_tokens=work.completion_tokens + 1,  # the last one is not read any more
        max_new_tokens=work.completion_tokens + 1,
        return_dict_in_generate=True,
    )
    found = sum(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers)
    assert estimate_sampling(meta, work, half=None)[0] == found
    longer = dataclasses.replace(work, completion_tokens=11)
    assert estimate_sampling(meta, longer, half=None)[0] != found  # control


@pytest.mark.parametrize("model_type", FAMILIES.values())
def test_each_layer_of_a_family_caches_what_it_is_said_to(model_type: str, on_disk: tuple[Path, DataArguments]) -> None:
    """Layers of Gemma 4 differ in their heads, and some keep a window alone."""
    folder = str(on_disk[0].with_name(model_type))
    meta = build_meta_model(ModelArguments(folder), Launch())
    model = load_model(folder).model
    prompts = torch.full((2, 30), 5)
    options = {"attention_mask": torch.ones_like(prompts), "min_new_tokens": 11, "max_new_tokens": 11}
    output = model.generate(input_ids=prompts, return_dict_in_generate=True, **options)
    found = sum(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers)
    work = Workload(rows=2, clips=1, prompt_tokens=30, completion_tokens=10, towers={}, frames=1, size=(8, 8))
    assert estimate_sampling(meta, dataclasses.replace(work, generated_rows=2), half=None)[0] == found


def test_control_the_estimate_of_another_setting_is_far(results: dict[str, tuple[Measured, Measured]]) -> None:
    _, found = results["full, batch 8, SGD"]
    for other in ("full, batch 4", "LoRA, batch 8, checkpointing"):
        assert results[other][0].step != pytest.approx(found.step, rel=2.5 * TOLERANCE)
        assert results[other][0].optimiser != found.optimiser
    assert results["full, batch 4"][0].flops != pytest.approx(found.flops, rel=4 * FLOPS_TOLERANCE)
