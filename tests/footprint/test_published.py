"""Models of published sizes, built without weights from `docs/configs`, against the numbers that are published."""

from pathlib import Path

import pytest

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.footprint.flops import layer_flops
from aurora_rl.footprint.launch import Launch
from aurora_rl.footprint.parameters import LANGUAGE_MODEL, MetaModel, build_meta_model

CONFIGS = Path(__file__).resolve().parents[2] / "docs/configs"
#: Parameters of the hub's safetensors: Qwen3-VL-8B-Instruct, gemma-4-12B (with a scalar of each layer, a buffer here).
PUBLISHED = {"qwen3_vl_8b": 8_767_123_696, "gemma4_12b": 11_959_730_224 - 48}
#: Qwen3-30B-A3B, whose sizes Qwen3-Omni's language model has, but for 128 rows more in embeddings and LM head.
QWEN3_30B = 30_532_122_624


def of(name: str) -> MetaModel:
    return build_meta_model(ModelArguments(str(CONFIGS / name)), Launch())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_that_are_published(name: str) -> None:
    meta = of(name)
    assert sum(part.numel for part in meta.parts if part.name != "mask head") == PUBLISHED[name]


def test_of_thirty_billion_parameters_a_token_passes_three() -> None:
    meta = of("qwen3_omni_30b")
    [language_model] = [part for part in meta.parts if part.name == LANGUAGE_MODEL]
    head = meta.base.get_output_embeddings().weight
    assert language_model.numel == QWEN3_30B + 2 * 128 * head.size(1)
    active = layer_flops(meta).passed / 2 + 2 * head.numel()  # with the embeddings, as the published 3.3 billion
    assert active == pytest.approx(3.3e9, rel=0.02)
