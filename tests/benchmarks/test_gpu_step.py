"""The benchmark of the real shapes, as far as it goes without a GPU: at toy size, and on the `meta` device."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aurora_rl.footprint.flops import StepFlops, estimate_flops
from aurora_rl.footprint.parameters import MetaModel
from aurora_rl.footprint.workload import Workload
from aurora_rl.models.loading import prepare_vocabulary
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from benchmarks import gpu_step
from benchmarks.contenders import MASK_PARTS, PARTS
from benchmarks.gpu_watch import WATCHED_PARTS, summarise_events


def test_the_gpu_benchmark_runs_at_toy_size_and_refuses_real_ones_without_a_gpu(tmp_path, capsys, monkeypatch):
    counted: list[tuple[Workload, StepFlops]] = []

    def count(meta: MetaModel, work: Workload, **options: bool) -> StepFlops:
        counted.append((work, estimate_flops(meta, work, **options)))
        return counted[-1][1]

    monkeypatch.setattr(gpu_step, "estimate_flops", count)
    gpu_step.main(["--size", "toy", "--repeats", "1", "--output", str(tmp_path / "out.json")])
    numbers = json.loads((tmp_path / "out.json").read_text())
    parts = sum(numbers[name] for name in (*PARTS, *MASK_PARTS, *WATCHED_PARTS))
    assert parts == pytest.approx(numbers["whole step, s"])
    ((work, flops),) = counted
    # A group of two rows; frames are enlarged to 192 x 192 pixels; 1 s.
    assert (work.rows, work.clips, work.completion_tokens) == (2, 1, 6)
    assert [tower.tokens for tower in work.towers.values()] == [24 * 24, 25]
    assert (work.generated_rows, work.num_steps) == (4, 2)
    assert numbers["tokens a second of the step"] == pytest.approx(2 * work.tokens / numbers["whole step, s"])
    assert all(numbers[name] > 0 for name in ("media encoding", "towers"))
    assert numbers["towers in forward"] < numbers["towers"]  # what sampling has computed is kept
    assert numbers["rewards, CPU s a completion"] > 0 == numbers["weight sync"]
    seconds = numbers["forward"] + numbers["towers in forward"] + numbers["backward"]
    assert numbers["TFLOPs a second, forward + backward"] == pytest.approx(flops.training / seconds / 1e12)
    assert re.search(r"\| mask decode \| 0\.\d+", capsys.readouterr().out)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu_step.main(["--size", "3b"])
    assert "needs a GPU" in capsys.readouterr().err


def test_the_recipes_adapter_and_its_reference_are_trained_and_traced(tmp_path: Path) -> None:
    """In peaks and estimate, too: `lm_head` and `embed_tokens` of 64 wide, trained, and once more as reference."""
    options = ["--as_recipe", "--trace", str(tmp_path / "trace.json"), "--output", str(tmp_path / "out.json")]
    gpu_step.main(["--size", "toy", "--repeats", "1", *options])
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert numbers["scoring"] > 0  # of the reference
    assert numbers["estimated: reference adapter, GB"] == numbers["estimated: gradients, GB"] > 0
    for moment in ("sampling", "training"):
        lines = sum(value for name, value in numbers.items() if name.startswith("estimated: weights"))
        assert numbers[f"peak while {moment}, allocated, GB"] > 0
        assert numbers[f"estimated: peak while {moment}, GB"] > lines
        assert f"peak while {moment}, reserved, GB" not in numbers  # a CPU has no such allocator
    assert "traceEvents" in json.loads((tmp_path / "trace.json").read_text())


@pytest.mark.multiprocess
def test_deepspeed_steps_in_half_precision_without_autocast(tmp_path: Path) -> None:
    """In a process of its own: a launch by DeepSpeed cannot be taken back."""
    command = ["-m", "benchmarks.gpu_step", "--size", "toy", "--repeats", "1", "--as_recipe", "--deepspeed"]
    out = tmp_path / "out.json"
    done = subprocess.run([sys.executable, *command, "--output", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    numbers = json.loads(out.read_text())
    assert all(numbers[part] > 0 for part in ("generation", "forward", "backward"))
    assert numbers["estimated: DeepSpeed's reduce bucket, GB"] == pytest.approx(1.0)  # 5e8 of bfloat16


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_vllm_samples_and_is_sent_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: an engine leaves torch's process group behind."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    command = ["-m", "benchmarks.gpu_step", "--size", "toy", "--repeats", "1", "--as_recipe", "--sampler", "vllm"]
    out = tmp_path / "out.json"
    done = subprocess.run([sys.executable, *command, "--output", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    numbers = json.loads(out.read_text())
    assert all(numbers[part] > 0 for part in ("generation", "weight sync", "forward", "backward"))


@dataclasses.dataclass
class Event:
    """As the profiler has them; times in microseconds."""

    name: str
    start: float
    end: float
    on_gpu: bool = False

    @property
    def time_range(self) -> "Event":
        return self

    @property
    def device_type(self) -> torch.autograd.DeviceType:
        return torch.autograd.DeviceType.CUDA if self.on_gpu else torch.autograd.DeviceType.CPU


def test_idle_share_launches_and_waits_by_hand() -> None:
    """Of 10 us, kernels on two streams cover 1 to 4 and 6 to 7."""
    events = [
        Event("aten::mm", 0, 10),
        Event("cudaLaunchKernel", 0, 1),
        Event("cudaLaunchKernelExC", 5, 6),
        Event("cudaStreamSynchronize", 7, 10),
        Event("gemm", 1, 3, on_gpu=True),
        Event("copy", 2, 4, on_gpu=True),
        Event("gemm", 6, 7, on_gpu=True),
    ]
    assert summarise_events(events) == {
        "traced: idle share of the GPU": pytest.approx(0.6),
        "traced: kernel launches": 2.0,
        "traced: synchronisations": 1.0,
    }


@pytest.mark.parametrize(
    ("size", "weights"),
    [("3b", 4.71e9), ("7b", 8.95e9)],  # published with talker and vocoder, 5.54e9 and 10.7e9
)
def test_a_real_shape_is_built_from_the_checkout_alone(size: str, weights: float, monkeypatch) -> None:
    def no_hub(*args: object, **kwargs: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_hub)
    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", no_hub)
    shape = gpu_step.SHAPES[size]
    model, processor = gpu_step.build_model(shape, device="meta")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(weights, rel=0.01)
    seg_token_id = prepare_vocabulary(model, processor, Qwen2_5OmniFamily())["masks"]
    assert 151_643 < seg_token_id < len(processor.tokenizer) <= model.get_input_embeddings().num_embeddings
    prompt = gpu_step._encoder(shape, processor)(gpu_step._sample()).prompt
    assert shape.frame_size == (720, 1280)
    # 5 pairs of frames of 336 x 560, 28 x 28 pixels a token; 25 tokens a second of sound
    assert prompt.prompt_ids.count(model.config.video_token_id) == 5 * 12 * 20
    assert prompt.prompt_ids.count(model.config.audio_token_id) == 250
    assert len(prompt.features["pixel_values_videos"]) == 4 * 5 * 12 * 20
