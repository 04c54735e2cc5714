"""The benchmark of the real shapes, as far as it goes without a GPU: at toy size, and on the `meta` device."""

import json
import re

import pytest
import torch

from aurora_rl.footprint.flops import StepFlops, estimate_flops
from aurora_rl.footprint.parameters import MetaModel
from aurora_rl.footprint.workload import Workload
from aurora_rl.models.loading import prepare_vocabulary
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from benchmarks import gpu_step
from benchmarks.contenders import MASK_PARTS, PARTS


def test_the_gpu_benchmark_runs_at_toy_size_and_refuses_real_ones_without_a_gpu(tmp_path, capsys, monkeypatch):
    counted: list[tuple[Workload, StepFlops]] = []

    def count(meta: MetaModel, work: Workload, **options: bool) -> StepFlops:
        counted.append((work, estimate_flops(meta, work, **options)))
        return counted[-1][1]

    monkeypatch.setattr(gpu_step, "estimate_flops", count)
    gpu_step.main(["--size", "toy", "--repeats", "1", "--json", str(tmp_path / "out.json")])
    numbers = json.loads((tmp_path / "out.json").read_text())
    parts = sum(numbers[name] for name in (*PARTS, *MASK_PARTS))
    assert parts == pytest.approx(numbers["whole step, s"])
    ((work, flops),) = counted
    assert (work.rows, work.completion_tokens, work.patches, work.mels) == (
        2,
        6,
        24 * 24,
        50,
    )  # enlarged to 192 x 192 pixels; 1 s
    assert numbers["tokens a second of the step"] == pytest.approx(work.tokens / numbers["whole step, s"])
    seconds = numbers["forward"] + numbers["backward"]
    assert numbers["TFLOPs a second, forward + backward"] == pytest.approx(flops.training / seconds / 1e12)
    assert re.search(r"\| mask decode \| 0\.\d+", capsys.readouterr().out)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu_step.main(["--size", "3b"])
    assert "needs a GPU" in capsys.readouterr().err


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
    seg_token_id = prepare_vocabulary(model, processor, Qwen2_5OmniFamily())
    assert 151_643 < seg_token_id < len(processor.tokenizer) <= model.get_input_embeddings().num_embeddings
    prompt = gpu_step._encoder(shape, processor)(gpu_step._sample()).prompt
    # 5 pairs of frames of 336 x 560, 28 x 28 pixels a token; 25 tokens a second of sound
    assert prompt.prompt_ids.count(model.config.video_token_id) == 5 * 12 * 20
    assert prompt.prompt_ids.count(model.config.audio_token_id) == 250
    assert len(prompt.features["pixel_values_videos"]) == 4 * 5 * 12 * 20
