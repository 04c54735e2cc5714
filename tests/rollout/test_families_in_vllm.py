"""Of each family, vLLM computes what the policy computes, before and after LoRA is merged and sent."""

import json

import pytest
import torch

from aurora_rl.models.mllm import MLLMFamily
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from aurora_rl.models.mllm.qwen2_5_vl import Qwen2_5VLFamily
from aurora_rl.models.mllm.qwen3_5 import Qwen3_5Family
from aurora_rl.models.mllm.qwen3_omni import Qwen3OmniFamily
from aurora_rl.models.mllm.qwen3_vl import Qwen3VLFamily
from aurora_rl.models.mllm.qwen3_vl_moe import Qwen3VLMoeFamily
from benchmarks.vllm_parity import AFTER, BEFORE, cells_of_family, measure_family

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

#: Largest difference of log-probabilities; in bfloat16, rounding alone moves a tiny random model's by 0.1.
SAME = {torch.float32: 1e-4, torch.bfloat16: 0.5}
#: Qwen2.5-Omni is measured in `test_engine.py`.
MEASURED = [Qwen3VLFamily, Qwen2_5VLFamily, Qwen3VLMoeFamily, Qwen3_5Family, Qwen3OmniFamily]


@pytest.mark.parametrize("family", MEASURED, ids=lambda family: family.model_types[0])
def test_log_probabilities_agree_before_and_after_a_sync(family: type[MLLMFamily], record_property) -> None:
    """Text alone, frames of several sizes, numbers and rates, and with ears sound after and between them."""
    agreement = measure_family(family())
    assert agreement.before < SAME[agreement.dtype]
    assert agreement.stale > 1.0  # control: without the sync
    assert agreement.after < SAME[agreement.dtype]
    for column, text in agreement.cells.items():
        record_property("cell", f"{family.model_types[0]}|{column}|{text}")


def test_positions_that_vllm_cannot_hold_are_an_error() -> None:
    """At 4 frames a second a pair of frames takes half a second, which is 6.5 positions of Qwen3-Omni."""
    from aurora_rl.models.mllm.qwen3_omni.engine import whole

    with pytest.raises(ValueError, match="1 tokens of a video have positions in time that are no whole numbers"):
        whole(torch.tensor([[0.0, 6.5, 13.0]] * 3))
    assert whole(torch.tensor([[0.0, 13.0]] * 3)).tolist() == [[0, 13]] * 3


def test_a_family_that_is_refused_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Qwen2_5OmniFamily, "engine_refusal", "it differs by 0.3")
    cells = json.loads(json.dumps(cells_of_family("qwen2_5_omni")))
    assert cells == {BEFORE: "refused: it differs by 0.3", AFTER: "refused: it differs by 0.3"}
