"""What vLLM's plugin registers: the families' own classes, and those of a family from outside."""

import os
from pathlib import Path

import pytest

if "CI" not in os.environ:  # there, its absence is an error
    pytest.importorskip("vllm")
from vllm import ModelRegistry

from aurora_rl.models.mllm import FAMILIES, MLLMFamily, load_family
from aurora_rl.rollout.plugin import FAMILY_VARIABLE, register, register_with

pytestmark = pytest.mark.vllm
FAMILY = """
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily


class MyFamily(Qwen2_5OmniFamily):
    engine_architecture = "MyOmniInsideVLLM"
    engine_class = "{place}:MyOmniInsideVLLM"
"""
ENGINE = "import torch\n\n\nclass MyOmniInsideVLLM(torch.nn.Module):\n    pass\n"


@pytest.fixture(params=["file", "module"])
def own(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MLLMFamily:
    """A family whose class inside vLLM lies in another file, or in a module that vLLM shall import by itself."""
    monkeypatch.setenv(FAMILY_VARIABLE, "")  # put back afterwards
    monkeypatch.setattr(ModelRegistry, "models", dict(ModelRegistry.models))
    (tmp_path / "engine.py").write_text(ENGINE)
    place = tmp_path / "engine.py" if request.param == "file" else "not_yet_imported.engine"
    (tmp_path / "mine.py").write_text(FAMILY.format(place=place))
    return load_family(f"{tmp_path / 'mine.py'}:MyFamily")


def test_the_families_of_the_package_are_known_without_being_named() -> None:
    register()
    assert {family.engine_architecture for family in FAMILIES} <= set(ModelRegistry.get_supported_archs())


def test_a_family_from_outside_is_registered_here_and_by_the_environment_in_other_processes(own: MLLMFamily) -> None:
    register_with(own)
    assert "MyOmniInsideVLLM" in ModelRegistry.get_supported_archs()
    assert type(load_family(os.environ[FAMILY_VARIABLE])) is type(own)
    del ModelRegistry.models["MyOmniInsideVLLM"]
    register()  # as the plugin does in a process that inherits the environment
    assert "MyOmniInsideVLLM" in ModelRegistry.get_supported_archs()
    register_with(FAMILIES[0]())  # a later run
    assert FAMILY_VARIABLE not in os.environ
