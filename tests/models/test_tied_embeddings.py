"""Tied embeddings with a saved head or saved embeddings: what is exported is the policy, or the run is refused."""

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch import nn

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.model import peft_config
from aurora_rl.models.adapters import check_saved_head, check_trained_head
from aurora_rl.models.loading import LoadedModel, load_model
from aurora_rl.rollout.export import export_for_vllm
from aurora_rl.rollout.weights import check_adapters

SEGMENTER = {"type": "dot", "image_size": 64, "width": 16}


@pytest.fixture
def tied(loaded: LoadedModel, tmp_path: Path) -> LoadedModel:
    for config in (loaded.model.config, loaded.model.config.text_config):
        config.tie_word_embeddings = True
    loaded.model.tie_weights()
    loaded.model.save_pretrained(tmp_path / "tied")
    loaded.processor.save_pretrained(tmp_path / "tied")
    tied = load_model(str(tmp_path / "tied"))
    assert tied.model.lm_head.weight is tied.model.get_input_embeddings().weight
    return tied


def with_lora(loaded: LoadedModel, saved: list[str], **options: object) -> nn.Module:
    config = peft_config(ModelArguments(model="", use_peft=True, lora_r=4), loaded)
    for name, value in {"modules_to_save": ["seg_head", *saved], **options}.items():
        setattr(config, name, value)
    return get_peft_model(copy.deepcopy(loaded.model), config).eval()


@torch.no_grad()
def log_probs(model: nn.Module) -> torch.Tensor:
    ids = torch.arange(5, 25)[None]
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.log_softmax(-1)


@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
def test_what_is_exported_is_the_policy(tied: LoadedModel, saved: list[str], tmp_path: Path) -> None:
    policy = with_lora(tied, saved)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "modules_to_save" in name and "seg_head" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    trained = LoadedModel(policy, tied.processor, tied.family)
    folder = export_for_vllm(trained, tmp_path / "engine")
    thinker = json.loads((folder / "config.json").read_text())["thinker_config"]
    assert thinker["tie_word_embeddings"] is thinker["text_config"]["tie_word_embeddings"] is False
    again = load_model(str(folder), segmenter=SEGMENTER).model.eval()
    assert (log_probs(again) - log_probs(policy)).abs().max() < 1e-4
    again.lm_head.weight = again.get_input_embeddings().weight  # control: as an engine with tied weights has it
    assert (log_probs(again) - log_probs(policy)).abs().max() > 0.1


def test_a_head_that_peft_has_tied_is_refused(tied: LoadedModel) -> None:
    for check in (check_saved_head, check_trained_head):
        check(with_lora(tied, ["lm_head", "embed_tokens"]))
        with pytest.raises(ValueError, match="Set ensure_weight_tying to false"):
            check(with_lora(tied, ["lm_head", "embed_tokens"], ensure_weight_tying=True))


def test_an_adapter_on_the_head_is_refused_for_training(loaded: LoadedModel) -> None:
    policy = with_lora(loaded, [], target_modules=["q_proj", "lm_head"])
    check_saved_head(policy)
    with pytest.raises(ValueError, match="name lm_head in modules_to_save"):
        check_trained_head(policy)


def test_an_adapter_on_the_embeddings_is_refused_before_an_engine_starts(loaded: LoadedModel) -> None:
    check_adapters(with_lora(loaded, ["lm_head"]))
    with pytest.raises(ValueError, match="embed_tokens: only plain LoRA on linear layers"):
        check_adapters(with_lora(loaded, [], target_modules=["q_proj", "embed_tokens"]))
