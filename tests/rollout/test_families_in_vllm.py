"""Of each family, vLLM computes what the policy computes, before and after LoRA is merged and sent."""

import json

import pytest

from aurora_rl.models.mllm import FAMILIES, MLLMFamily
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from benchmarks.vllm_parity import AFTER, BEFORE, cells_of_family, measure_family

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

#: Largest difference of log-probabilities in float32.
SAME = 1e-4
#: Qwen2.5-Omni is measured in `test_engine.py`.
MEASURED = [family for family in FAMILIES if not family.engine_refusal and family is not Qwen2_5OmniFamily]


@pytest.mark.parametrize("family", MEASURED, ids=lambda family: family.model_types[0])
def test_log_probabilities_agree_before_and_after_a_sync(family: type[MLLMFamily], record_property) -> None:
    agreement = measure_family(family())
    assert agreement.before < SAME
    assert agreement.stale > 0.1  # control: without the sync
    assert agreement.after < SAME
    for column, text in agreement.cells.items():
        record_property("cell", f"{family.model_types[0]}|{column}|{text}")


def test_a_family_that_is_refused_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Qwen2_5OmniFamily, "engine_refusal", "it differs by 0.3")
    cells = json.loads(json.dumps(cells_of_family("qwen2_5_omni")))
    assert cells == {BEFORE: "refused: it differs by 0.3", AFTER: "refused: it differs by 0.3"}
