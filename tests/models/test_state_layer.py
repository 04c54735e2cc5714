"""Which layer's state a head reads: transformers' hidden state of it, normed, whatever runs around it."""

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch import nn
from trl.trainer.utils import add_fused_lm_head

from aurora_rl.models.grounding import GroundingMixin, install_head_forward, segmentation_model
from aurora_rl.models.loading import LoadedModel, SegmentationLoraConfig, load_model
from aurora_rl.models.mllm import load_family
from aurora_rl.models.state_layer import StateLayer, check_state_layer
from tests.models.test_grounding import CLOSE, sft_batch

DOT = {"type": "dot", "image_size": 32, "width": 8}
CHECKPOINTINGS = {"none": None, "reentrant": {"use_reentrant": True}, "not reentrant": {"use_reentrant": False}}


def read_from(model: nn.Module, layer: int, name: str = "masks") -> None:
    head = segmentation_model(model).head(name)
    head.config = {**head.config, "state_layer": layer}


def gradients(model: nn.Module, batch: dict, loss: str) -> dict[str, torch.Tensor]:
    model.zero_grad()
    getattr(model(**batch), loss).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layer", [0, 1.0, "2", True, None])
def test_what_is_no_layer_is_told(layer: object) -> None:
    with pytest.raises(ValueError, match=r"segmenter: state_layer is .*: choose 1 for the first"):
        check_state_layer(layer, name="segmenter")


@pytest.mark.parametrize("layer", [3, -3])
def test_a_layer_that_the_decoder_lacks_is_an_error_with_their_number(omni_checkpoint: str, layer: int) -> None:
    with pytest.raises(ValueError, match=rf"head 'masks': state_layer is {layer}, but the decoder has 2 layers"):
        load_model(omni_checkpoint, segmenter={**DOT, "state_layer": layer})


def test_a_decoder_without_named_layers_has_its_last_state_alone() -> None:
    assert StateLayer(nn.Linear(2, 2)).is_last
    with pytest.raises(ValueError, match="Linear has no `layers` and `norm`.*leave state_layer out"):
        StateLayer(nn.Linear(2, 2), 1).watch(print)


def test_the_last_layer_by_any_name_is_the_decoder_s_own_output(loaded, encode, train_samples) -> None:
    batch = sft_batch(loaded, encode, train_samples[:2])
    plain = loaded.model(**batch).mask_logits
    for layer in (-1, 2):
        read_from(loaded.model, layer)
        assert torch.equal(loaded.model(**batch).mask_logits, plain)
    read_from(loaded.model, 1)
    assert (loaded.model(**batch).mask_logits - plain).abs().max() > 1e-3


def test_through_the_fused_lm_head_it_is_the_same_state(loaded, encode, train_samples) -> None:
    batch = sft_batch(loaded, encode, train_samples[:2])
    read_from(loaded.model, -2)
    plain = loaded.model(**batch).sparse_prompt_embeddings
    add_fused_lm_head(loaded.model, temperature=1.0, outputs=("log_probs",))
    install_head_forward(loaded.model)
    labels = batch["input_ids"].clone()
    fused = loaded.model(**batch, labels=labels, fused_lm_head=True)
    torch.testing.assert_close(fused.sparse_prompt_embeddings, plain, **CLOSE)


@pytest.mark.parametrize("peft", [False, True], ids=["full", "LoRA"])
@pytest.mark.parametrize("layer", [1, 2])
def test_checkpointing_of_either_kind_changes_no_gradient(loaded, encode, train_samples, layer, peft) -> None:
    batch = sft_batch(loaded, encode, train_samples[:2])
    read_from(loaded.model, layer)
    model = loaded.model
    if peft:
        targets = loaded.family.lora_target_modules
        model = get_peft_model(model, SegmentationLoraConfig(target_modules=targets, modules_to_save=["seg_head"]))
    model.train()
    found = []
    for kwargs in CHECKPOINTINGS.values():
        model.gradient_checkpointing_disable()
        if kwargs:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
        found.append(gradients(model, batch, "sparse_prompt_embeddings"))
    for checkpointed in found[1:]:
        assert found[0].keys() == checkpointed.keys()
        for name, gradient in found[0].items():
            torch.testing.assert_close(checkpointed[name], gradient, **CLOSE)
    of_layer = {number: [n for n in found[0] if f"layers.{number}.self_attn" in n] for number in (0, 1)}
    assert of_layer[0] and bool(of_layer[1]) is (layer == 2)  # a head does not train what is above its layer


def test_two_heads_read_two_layers() -> None:
    heads = {"boxes": {**DOT, "state_layer": 1}}
    family = load_family("qwen3_vl")
    model, _ = family.build_tiny(["a drum"], segmenter={**DOT, "state_layer": -1}, heads=heads)
    states = {}
    for name in ("masks", "boxes"):
        model.head(name).register_forward_pre_hook(lambda _m, args, name=name: states.update({name: args[0]}))
        model(input_ids=torch.tensor([[5, 6, 7]]), seg_index=torch.tensor([2]), head_name=name)
    hidden = model(input_ids=torch.tensor([[5, 6, 7]]), output_hidden_states=True).hidden_states
    torch.testing.assert_close(states["masks"], hidden[-1][:, 2], **CLOSE)
    torch.testing.assert_close(states["boxes"], model.get_decoder().norm(hidden[1])[:, 2], **CLOSE)


def test_a_checkpoint_and_an_adapter_remember_the_layer(omni_checkpoint: str, tmp_path: Path) -> None:
    first = load_model(omni_checkpoint, segmenter={**DOT, "state_layer": 1})
    first.model.save_pretrained(tmp_path / "whole")
    first.processor.save_pretrained(tmp_path / "whole")
    config = SegmentationLoraConfig(
        target_modules=first.family.lora_target_modules, modules_to_save=["seg_head"], segmenter=first.segmenter_config
    )
    first.model.config._name_or_path = omni_checkpoint
    get_peft_model(first.model, config).save_pretrained(tmp_path / "adapter")
    for folder in ("whole", "adapter"):
        again: GroundingMixin = segmentation_model(load_model(str(tmp_path / folder)).model)
        assert again.state_layer().layer == 1
        with pytest.raises(ValueError, match="was trained with the mask decoder"):
            load_model(str(tmp_path / folder), segmenter={**DOT, "state_layer": -1})


def test_a_recipe_may_name_the_layer_that_an_older_checkpoint_reads(tiny_checkpoint: str) -> None:
    loaded: LoadedModel = load_model(tiny_checkpoint, segmenter={"type": "dot", "state_layer": -1})
    assert "state_layer" not in loaded.segmenter_config
    with pytest.raises(ValueError, match="drop it"):
        load_model(tiny_checkpoint, segmenter={"type": "dot", "state_layer": 1})
