"""How 4 bits are asked for. Weights of 4 bits themselves need a GPU, and have not been run."""

import json
from pathlib import Path

import pytest
import torch

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.model import assemble_model, quantization_config
from aurora_rl.models.loading import load_model
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from aurora_rl.models.mllm.qwen2_5_omni.model import AuroraQwen2_5Omni
from aurora_rl.models.quantization import four_bit_config, is_quantized


@pytest.fixture
def gpu_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes and a GPU, as far as the wiring looks."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("transformers.utils.quantization_config.importlib.metadata.version", lambda name: "0.50.2")


def test_nothing_is_quantized_unless_asked_for() -> None:
    assert quantization_config(ModelArguments(model="m", use_peft=True)) is None


def test_config_is_nf4_with_double_quantization(gpu_machine: None, tiny_checkpoint: str) -> None:
    config = quantization_config(ModelArguments(model=tiny_checkpoint, use_peft=True, load_in_4bit=True))
    assert config is not None
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert config.llm_int8_skip_modules == ["seg_head", "boxes_head", "lm_head", "visual", "audio_tower"]


def test_quantized_weights_are_not_trained_whole(tiny_checkpoint: str) -> None:
    with pytest.raises(ValueError, match="set use_peft to true"):
        assemble_model(ModelArguments(model=tiny_checkpoint, load_in_4bit=True), head="masks")


def test_an_adapter_may_lie_on_quantized_weights(gpu_machine: None, tiny_checkpoint: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": tiny_checkpoint}))
    assert quantization_config(ModelArguments(model=str(tmp_path), load_in_4bit=True)) is not None
    assert quantization_config(ModelArguments(model=tiny_checkpoint, load_in_4bit=True), is_trainable=False) is not None


def test_without_bitsandbytes_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[quantization\]'"):
        four_bit_config(Qwen2_5OmniFamily())


def test_without_a_gpu_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RuntimeError, match="needs a GPU"):
        four_bit_config(Qwen2_5OmniFamily())


def test_the_config_reaches_from_pretrained(
    gpu_machine: None, tiny_checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {}

    def from_pretrained(cls, name, **options):
        given.update(options)
        raise InterruptedError

    monkeypatch.setattr(AuroraQwen2_5Omni, "from_pretrained", classmethod(from_pretrained))
    with pytest.raises(InterruptedError):
        assemble_model(ModelArguments(model=tiny_checkpoint, use_peft=True, load_in_4bit=True), head="masks")
    assert given["quantization_config"].load_in_4bit
    given.clear()
    with pytest.raises(InterruptedError):
        load_model(tiny_checkpoint)
    assert "quantization_config" not in given


def test_names_of_what_is_quantized_are_the_models(loaded) -> None:
    names = {name for name, p in loaded.model.named_parameters() if is_quantized(name, p, loaded.family)}
    projections = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    projections += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert names == {f"model.layers.{i}.{projection}.weight" for i in range(2) for projection in projections}


@pytest.mark.gpu
@pytest.mark.quantization
def test_a_model_of_4_bits_loads_with_its_head_in_float32(tiny_checkpoint: str) -> None:
    loaded = assemble_model(ModelArguments(model=tiny_checkpoint, use_peft=True, load_in_4bit=True), head="masks")
    decoder = loaded.model.get_decoder()
    assert decoder.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert loaded.model.seg_head.projector[0].weight.dtype == torch.float32
    assert loaded.model.lm_head.weight.dtype.is_floating_point
