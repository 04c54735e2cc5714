"""The options of a script that asks reach vLLM; the engine itself is tested in tests/rollout/test_engine.py."""

from typing import Any

import pytest

from aurora_rl.assembly.answering import start_engine
from aurora_rl.assembly.sampling import SamplingArguments, read_engine_kwargs
from aurora_rl.models.loading import LoadedModel
from aurora_rl.rollout import engine


def test_options_reach_the_engine_which_has_the_weights_before_it_is_asked(loaded: LoadedModel, monkeypatch):
    given, synced = {}, []

    class Engine:
        def __init__(self, policy: LoadedModel, **options: Any) -> None:
            given.update(options, policy=policy)

        def sync_weights(self) -> None:
            synced.append(self)

    monkeypatch.setattr(engine, "AuroraVLLMGeneration", Engine)
    assert start_engine(SamplingArguments(use_cpu=True), loaded) is None
    args = SamplingArguments(
        use_vllm=True,
        use_cpu=True,
        max_completion_length=7,
        batch_size=3,
        vllm_gpu_memory_utilization=0.25,
        vllm_max_model_length=99,
        vllm_engine_kwargs='{"kv_cache_memory_bytes": 5}',
    )
    assert [start_engine(args, loaded)] == synced
    assert given.pop("accelerator").device.type == "cpu"
    assert given == {
        "policy": loaded,
        "processing_class": loaded.processor,
        "mode": "colocate",
        "engine_kwargs": {"kv_cache_memory_bytes": 5},
        "gpu_memory_utilization": 0.25,
        "max_model_length": 99,
        "max_num_seqs": 3,
        "max_completion_length": 7,
    }


def test_a_record_says_of_vllm_what_changes_completions() -> None:
    kwargs = {"quantization": "fp8"}
    assert SamplingArguments(vllm_max_model_length=99, vllm_engine_kwargs=kwargs).of_vllm == {}
    assert SamplingArguments(use_vllm=True, vllm_gpu_memory_utilization=0.1).of_vllm == {"use_vllm": True}
    both = SamplingArguments(use_vllm=True, vllm_engine_kwargs=kwargs).of_vllm
    assert both == {"use_vllm": True, "vllm_engine_kwargs": kwargs}


@pytest.mark.parametrize(("given", "problem"), [("{a: 1}", "is no JSON"), ("[1]", "expected arguments of vllm.LLM")])
def test_arguments_of_the_engine_are_a_json_object(given: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"vllm_engine_kwargs is .*{problem}"):
        read_engine_kwargs(given)
