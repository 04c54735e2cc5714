"""vLLM's CPU kernels have no size for heads of 16, which the demo's model has: filled up with zeros, they are exact."""

from pathlib import Path

import pytest

from aurora_rl.models.loading import load_model
from aurora_rl.models.mllm.qwen2_5_omni.tiny import TinyOmniConfig, build_tiny_omni

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def tiny_checkpoint(tiny_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model with four heads of 16 in place of two of 32, for the engine of this file."""
    segmenter = load_model(tiny_checkpoint).segmenter_config
    sizes = TinyOmniConfig(num_layers=2, num_heads=4, initializer_range=0.1)
    model, processor = build_tiny_omni(["the drum that sounds first", "the bell", "the dog"], segmenter, sizes)
    folder: Path = tmp_path_factory.mktemp("narrow")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_narrow_heads_give_the_policys_log_probabilities(generation, generate, make_prompts, difference):
    config = generation.loaded.model.config.get_text_config()
    assert config.hidden_size // config.num_attention_heads == 16
    rows = [
        make_prompts(generation.loaded, kind=kind, seed=seed)
        for seed, kind in enumerate(("separate", "interleaved", "text"))
    ]
    assert difference(generation.model, generation.loaded, rows, generate(rows)) < 1e-4


def test_only_sizes_without_a_kernel_are_filled_up():
    from aurora_rl.models.mllm.narrow_heads import kernel_head_size

    assert [kernel_head_size(size) for size in (16, 32, 48, 64, 128)] == [32, 32, 64, 64, 128]
