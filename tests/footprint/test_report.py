import dataclasses
import logging
import os

import pytest
import torch

from aurora_rl.config import DataArguments, ModelArguments
from aurora_rl.data.sample import AVSample
from aurora_rl.footprint import DoesNotFitError, Footprint, Part, check_footprint, complaint, render
from aurora_rl.footprint.report import ADVICE, known_tflops, memory_limit
from aurora_rl.trainers.sft_config import AuroraSFTConfig


@pytest.fixture
def check(tiny_checkpoint: str, data_args: DataArguments, train_samples: list[AVSample], tmp_path):
    def run(**model_options) -> Footprint:
        training_args = AuroraSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
        model_args = ModelArguments(model=tiny_checkpoint, **model_options)
        return check_footprint(model_args, data_args, training_args, train_samples)

    return run


def test_the_table_is_logged_before_anything_is_loaded(check, caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    def no_weights(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", no_weights)
    with caplog.at_level(logging.INFO):
        footprint = check()
    assert "estimated memory of each process (1 process, whole)" in caplog.text
    assert "weights: language model" in caplog.text
    assert footprint.work.frames == 4 and footprint.work.size == (64, 64)  # read from the clips


def test_what_cannot_fit_stops_and_says_what_to_change(check, caplog: pytest.LogCaptureFixture) -> None:
    limit = check().peak
    check(memory_limit_gb=(limit + 1) / 1e9)  # fits exactly
    with pytest.raises(DoesNotFitError, match="this run is estimated at .* and there are 1.00 MB") as stop:
        check(memory_limit_gb=0.001)
    text = str(stop.value)
    assert "a smaller per_device_train_batch_size" in text
    assert "memory_limit_gb" in text and "ignore_memory_estimate" in text


def test_one_may_know_better(check) -> None:
    assert check(memory_limit_gb=0.001, ignore_memory_estimate=True).peak > 1e6


def test_the_limit_is_the_hosts_memory_divided_among_its_processes(monkeypatch) -> None:
    args, cpu = ModelArguments(model=""), torch.device("cpu")
    alone = memory_limit(args, cpu)
    assert alone == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory_limit(args, cpu) == alone // 2
    assert memory_limit(ModelArguments(model="", memory_limit_gb=1.5), cpu) == 1_500_000_000


def test_a_gpu_is_known_by_its_name(monkeypatch) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA A100-SXM4-80GB")
    assert known_tflops(device) == 312.0
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "Some GPU")
    assert known_tflops(device) is None
    assert known_tflops(torch.device("cpu")) is None


def test_time_is_printed_only_where_the_peak_is_known(check) -> None:
    footprint = check()
    assert "TFLOP/s" not in render(footprint)
    assert "at 50% of 10 TFLOP/s" in render(footprint, tflops=10.0, utilisation=0.5)


def test_the_complaint_names_the_largest_parts_of_the_fullest_moment(check) -> None:
    parts = (
        Part("weights: language model", 3 * 10**9),
        Part("optimiser state", 2 * 10**9),
        Part("gradients", 10**9, "training"),
        Part("activations: decoder", 9 * 10**9, "training"),
        Part("key-value cache", 8 * 10**9, "rollouts"),
    )
    text = complaint(dataclasses.replace(check(), device=parts), 10**10)
    named = [line.split(",")[0].strip() for line in text.splitlines()[1:4]]
    assert named == ["activations: decoder", "weights: language model", "optimiser state"]
    assert "15.00 GB for each process, and there are 10.00 GB" in text


def test_every_part_has_advice(check) -> None:
    names = [part.name for part in check().device]
    assert all(any(name.startswith(start) for start in ADVICE) for name in names)
