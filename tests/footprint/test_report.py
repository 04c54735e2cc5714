import dataclasses
import logging
import os

import pytest
import torch

from aurora_rl.assembly.arguments import DataArguments, ModelArguments, TargetArguments
from aurora_rl.data.sample import AVSample
from aurora_rl.footprint import DoesNotFitError, Footprint, Launch, Limits, Part, check_footprint, complaint, render
from aurora_rl.footprint.flops import StepFlops
from aurora_rl.footprint.limits import device_memory, host_memory
from aurora_rl.footprint.parts import LAYERS, LM_HEAD, MASKS, SAMPLING, TRAINING
from aurora_rl.footprint.report import ADVICE, known_tflops
from aurora_rl.trainers.sft_config import AuroraSFTConfig


@pytest.fixture
def check(tiny_checkpoint: str, data_args: DataArguments, train_samples: list[AVSample], tmp_path):
    def run(target_args: TargetArguments | None = None, **model_options) -> Footprint:
        training_args = AuroraSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
        model_args = ModelArguments(model=tiny_checkpoint, **model_options)
        return check_footprint(model_args, data_args, training_args, train_samples, target_args=target_args)

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


def test_the_memory_of_a_cpu_is_the_hosts() -> None:
    assert device_memory(torch.device("cpu")) == host_memory()
    assert host_memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("limit_gb", "launch", "expected"),
    [
        (None, Launch(8), Limits(device=80, host=100)),
        (None, Launch(16, num_machines=2), Limits(device=80, host=100)),  # eight processes on each
        (None, Launch(2, is_gpu=False), Limits(device=400)),
        (1e-9, Launch(8), Limits(device=1, host=100)),  # the host's memory is still what it is
        (1e-9, Launch(2, is_gpu=False), Limits(device=1)),
    ],
)
def test_processes_share_the_hosts_memory_and_have_a_gpu_each(
    limit_gb: float | None, launch: Launch, expected: Limits
) -> None:
    args = ModelArguments(model="", memory_limit_gb=limit_gb)
    assert Limits.of(args, launch, device_memory=80, host_memory=800) == expected


def test_a_run_that_is_too_large_for_the_host_stops(check, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU run the host is the device; on a GPU it is what is offloaded and the masks of the rollouts."""
    limit = check().peak
    monkeypatch.setattr("aurora_rl.footprint.report.host_memory", lambda: limit - 1)
    with pytest.raises(DoesNotFitError, match="this run is estimated at"):
        check()
    parts = (Part("masks of the rollouts", 3 * 10**9), Part("optimiser state", 8 * 10**9))
    footprint = dataclasses.replace(check(ignore_memory_estimate=True), host=parts)
    assert complaint(footprint, Limits(device=10**12, host=11 * 10**9)) is None
    text = complaint(footprint, Limits(device=10**12, host=10**10))
    assert text is not None and "11.00 GB in host memory for each process, and there are 10.00 GB" in text
    assert [line.split(",")[0].strip() for line in text.splitlines()[1:3]] == [parts[1].name, parts[0].name]
    *_, total = [line for line in render(footprint, limits=Limits(host=10**10)).splitlines() if "peak " in line]
    assert total.split() == ["peak", "11.00", "GB", "of", "10.00", "GB"]


def test_a_live_teacher_is_counted(check, tiny_checkpoint: str) -> None:
    live = TargetArguments(teacher=tiny_checkpoint)
    stored = TargetArguments(teacher=tiny_checkpoint, teacher_features="features.safetensors")
    weights = sum(part.num_bytes for part in check().device if part.name.startswith("weights: "))
    assert check(live).peak - check(stored).peak == weights
    assert check(stored).peak == check().peak


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


def test_time_and_operations_are_shown_by_share(check) -> None:
    footprint = dataclasses.replace(
        check(), flops=StepFlops(sampling=3e12, scoring=0.0, training=11e12, recomputing=1e12)
    )
    *_, heading, sampling, training, recomputing, whole = render(footprint, tflops=10.0, utilisation=0.5).splitlines()
    assert heading.startswith("estimated operations of a step")  # and nothing is scored
    assert sampling.split() == ["sampling", "3", "TFLOP", "0.6", "s"]
    assert training.split() == ["training", "11", "TFLOP", "2.2", "s"]
    assert recomputing.split() == ["recomputing", "1", "TFLOP", "0.2", "s"]
    assert whole.split() == ["whole", "step", "15", "TFLOP", "3", "s"]


def test_the_mask_decoder_is_listed_even_where_another_part_decides_the_peak(check) -> None:
    lines = render(check()).splitlines()
    (masks,) = [line for line in lines if "activations: mask decoder" in line]
    assert masks.endswith("while training, one after the other")
    parts = (
        Part("weights: towers", 1),
        Part("activations: decoder", 10, TRAINING),
        Part("activations: mask decoder and mask loss", 300, MASKS),
        Part("activations: LM head", 500, LM_HEAD),
        Part("activations: one layer", 400, LAYERS),
        Part("prefill", 505, SAMPLING),
    )
    assert dataclasses.replace(check(), device=parts).peak == 511


def test_the_complaint_names_the_largest_parts_of_the_fullest_moment(check) -> None:
    parts = (
        Part("weights: language model", 3 * 10**9),
        Part("optimiser state", 2 * 10**9),
        Part("gradients", 10**9, "training"),
        Part("activations: decoder", 9 * 10**9, "training"),
        Part("key-value cache", 8 * 10**9, "sampling"),
    )
    text = complaint(dataclasses.replace(check(), device=parts), Limits(device=10**10))
    assert text is not None
    named = [line.split(",")[0].strip() for line in text.splitlines()[1:4]]
    assert named == ["activations: decoder", "weights: language model", "optimiser state"]
    assert "15.00 GB for each process, and there are 10.00 GB" in text


def test_every_part_has_advice(check) -> None:
    names = [part.name for part in check().device]
    assert all(any(name.startswith(start) for start in ADVICE) for name in names)
