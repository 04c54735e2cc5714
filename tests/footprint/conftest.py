import pytest

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.footprint.launch import Launch
from aurora_rl.footprint.parameters import MetaModel, build_meta_model
from aurora_rl.footprint.workload import Workload
from aurora_rl.models.mllm import TowerPass


@pytest.fixture
def meta(tiny_checkpoint: str) -> MetaModel:
    """The tiny model of two layers without its weights, towers frozen."""
    return build_meta_model(ModelArguments(model=tiny_checkpoint, freeze=["visual", "audio_tower"]), Launch())


@pytest.fixture
def work() -> Workload:
    """Two rows of 30 + 10 tokens on one clip of 4 frames of 64 x 64; four rows are sampled at a time."""
    return Workload(
        rows=2,
        clips=1,
        prompt_tokens=30,
        completion_tokens=10,
        towers={"visual": TowerPass(128, 48, 1), "audio_tower": TowerPass(50, 48, 1)},
        frames=4,
        size=(64, 64),
        generated_rows=4,
    )
