"""Which weights go to vLLM, under which names, and that LoRA comes merged while the policy stays as it is."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.testing import assert_close
from transformers import BitsAndBytesConfig

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.model import peft_config
from aurora_rl.models.loading import LoadedModel, load_model
from aurora_rl.models.mllm import FAMILIES
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from aurora_rl.models.mllm.qwen3_vl_moe import Qwen3VLMoeFamily
from aurora_rl.models.quantization import is_quantized, not_quantized
from aurora_rl.rollout.export import engine_config
from aurora_rl.rollout.weights import changes_towers, engine_weights


def lora(loaded: LoadedModel, **options) -> nn.Module:
    """The policy under LoRA with adapters and copies that differ from what they started as, and a reference."""
    config = peft_config(ModelArguments(model="", use_peft=True, lora_r=4), loaded)
    for name, value in options.items():
        setattr(config, name, value)
    model = get_peft_model(copy.deepcopy(loaded.model), config)
    model.add_adapter("ref", config)  # as TRL does where an adapter is trained on
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter))
    return model


def sent(model: nn.Module, loaded: LoadedModel, *, towers: bool = False) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in engine_weights(model, loaded.family, towers=towers)}


def language_model_names(loaded: LoadedModel) -> set[str]:
    return {
        f"thinker.{name}"
        for name, _ in loaded.model.named_parameters()
        if not name.startswith(("seg_head.", "visual.", "audio_tower."))
    }


def test_the_language_model_is_sent_and_nothing_else(loaded):
    names = sent(loaded.model, loaded).keys()
    assert names == language_model_names(loaded)
    assert {"thinker.lm_head.weight", "thinker.model.embed_tokens.weight", "thinker.model.norm.weight"} <= names
    assert not any(word in name for name in names for word in ("seg_head", "visual", "audio_tower"))


def test_a_tower_is_left_out_by_its_path_and_not_by_its_name(loaded):
    class Deep(Qwen2_5OmniFamily):
        tower_names = ("model.layers.0.mlp", "visual")

    names = [name.removeprefix("thinker.") for name, _ in engine_weights(loaded.model, Deep(), towers=False)]
    assert not any(name.startswith(("model.layers.0.mlp.", "visual.")) for name in names)
    assert any(name.startswith("model.layers.1.mlp.") for name in names)
    assert any(name.startswith("audio_tower.") for name in names)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_types[0])
def test_of_each_family_the_towers_stay_out_and_all_else_is_sent(family):
    """Some lie under `model`, and no other part of any model is named like one of them."""
    family = family()
    model, _ = family.build_tiny(["the drum"], segmenter={"type": "dot", "image_size": 32, "width": 8})
    names = {name for name, _ in model.named_parameters() if not name.startswith("seg_head.")}
    towers = {name for name in names if family.is_tower(name)}
    assert {name.removeprefix(family.engine_prefix) for name, _ in engine_weights(model, family, towers=True)} >= names
    frozen = {name.removeprefix(family.engine_prefix) for name, _ in engine_weights(model, family, towers=False)}
    assert towers and not frozen & towers and frozen >= names - towers


def test_experts_are_sent_as_the_hub_stores_them():
    family = Qwen3VLMoeFamily()
    model, _ = family.build_tiny(["the drum"])
    found = {name: weight.shape for name, weight in engine_weights(model, family, towers=False)}
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            assert found[name] == parameter.shape[:1] + parameter.shape[1:][::-1]


def test_towers_are_sent_where_they_are_asked_for(loaded):
    extra = sent(loaded.model, loaded, towers=True).keys() - sent(loaded.model, loaded).keys()
    towers = {f"thinker.{n}" for n, _ in loaded.model.named_parameters() if n.startswith(("visual.", "audio_tower."))}
    assert extra == towers


def test_under_lora_the_names_are_the_same(loaded):
    assert sent(lora(loaded), loaded).keys() == language_model_names(loaded)


def test_lora_comes_merged_and_the_policy_stays_as_it_is(loaded):
    model = lora(loaded)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    found = sent(model, loaded, towers=True)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
    merged = copy.deepcopy(model).merge_and_unload().state_dict()
    for name, weight in found.items():
        assert_close(weight, merged[name.removeprefix("thinker.")])
    query = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(found[f"thinker.{query}"], loaded.model.state_dict()[query], atol=1e-2)


def test_of_saved_modules_the_trained_copy_is_sent_and_not_the_reference(loaded):
    model = lora(loaded)
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["ref"].weight.fill_(7.0)
    trained = model.base_model.model.lm_head.modules_to_save["default"].weight
    assert torch.equal(sent(model, loaded)["thinker.lm_head.weight"], trained)
    assert not torch.equal(trained, loaded.model.lm_head.weight)


def test_each_layer_is_gathered_on_its_own(loaded):
    model, gathered = lora(loaded), []

    class Gather:
        def __init__(self, parameters):
            gathered.append(sum(parameter.numel() for parameter in parameters))

        def __enter__(self):
            return None

        def __exit__(self, *_):
            return None

    names = [name for name, _ in engine_weights(model, loaded.family, towers=False, gather=Gather)]
    assert len(gathered) > len(names) / 2
    assert max(gathered) == loaded.model.lm_head.weight.numel()  # never two large ones at once, nor what is not sent


def test_adapters_that_do_not_merge_by_addition_are_refused(loaded):
    with pytest.raises(ValueError, match="only plain LoRA"):
        sent(lora(loaded, use_dora=True), loaded)
    convolution = get_peft_model(copy.deepcopy(loaded.model), LoraConfig(target_modules=["visual.patch_embed.proj"]))
    with pytest.raises(ValueError, match=r"visual\.patch_embed\.proj: only plain LoRA"):
        sent(convolution, loaded, towers=True)


def test_frozen_towers_do_not_change(loaded):
    assert changes_towers(loaded.model, loaded.family)
    assert not changes_towers(lora(loaded), loaded.family)
    loaded.model.visual.requires_grad_(False)
    assert changes_towers(loaded.model, loaded.family)  # the audio tower is still trained
    loaded.model.audio_tower.requires_grad_(False)
    assert not changes_towers(loaded.model, loaded.family)


class Params4bit(nn.Parameter):
    """Stands in for bitsandbytes' class of that name: packed into a column of bytes, here without any loss."""

    quant_state: torch.Size


def pack(parameter: nn.Parameter) -> Params4bit:
    packed = Params4bit(parameter.detach().contiguous().view(torch.uint8).reshape(-1, 1), requires_grad=False)
    packed.quant_state = parameter.shape
    return packed


def unpack(weight: Params4bit, state: object = None) -> torch.Tensor:
    return weight.detach().reshape(-1).view(torch.float32).reshape(weight.quant_state)


@pytest.mark.parametrize("wrap", [lambda loaded: copy.deepcopy(loaded.model), lora], ids=["plain", "lora"])
def test_packed_weights_are_sent_as_the_numbers_they_stand_for(wrap, loaded, monkeypatch):
    """LoRA lies on two of the seven matrices that are packed in each layer."""
    monkeypatch.setattr("peft.utils.integrations.dequantize_bnb_weight", unpack)
    model = wrap(loaded)
    expected = sent(model, loaded)
    quantized = {
        name.removesuffix(".weight")
        for name, p in loaded.model.named_parameters()
        if is_quantized(name, p, loaded.family)
    }
    for name, module in model.named_modules():
        path = name.removeprefix("base_model.model.").removesuffix(".base_layer")
        if path in quantized and isinstance(module, nn.Linear):  # and not LoRA around it
            module.weight = pack(module.weight)
    packed = [parameter for parameter in model.parameters() if parameter.dtype == torch.uint8]
    assert len(packed) == len(quantized) == 7 * loaded.model.config.text_config.num_hidden_layers
    found = sent(model, loaded)
    assert found.keys() == expected.keys()
    assert all(found[name].equal(weight) for name, weight in expected.items())
    assert all(parameter.dtype == torch.uint8 for parameter in packed)  # the policy's own stay packed


def test_weights_that_nobody_can_unpack_are_refused(loaded):
    linear = loaded.model.model.layers[0].mlp.up_proj
    linear.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj\.weight is packed as torch\.uint8"):
        sent(loaded.model, loaded)


@pytest.mark.quantization
def test_weights_of_4_bits_are_sent_as_the_policy_multiplies_by_them(tiny_checkpoint: str):
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.float32}
    config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=not_quantized(Qwen2_5OmniFamily()), **options)
    quantized, plain = load_model(tiny_checkpoint, quantization_config=config), load_model(tiny_checkpoint)
    expected = sent(plain.model, plain)
    found = sent(quantized.model, quantized)
    assert {name: weight.shape for name, weight in found.items()} == {name: w.shape for name, w in expected.items()}
    up = quantized.model.model.layers[0].mlp.up_proj.train()  # in eval mode some CPUs multiply in bfloat16
    inputs = torch.randn(3, up.in_features)
    weight = found["thinker.model.layers.0.mlp.up_proj.weight"]
    assert_close(inputs @ weight.T, up(inputs), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(weight, expected["thinker.model.layers.0.mlp.up_proj.weight"])  # control: 4 bits lose
    assert "quantization_config" not in str(engine_config(quantized).to_dict())
