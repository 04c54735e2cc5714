"""Of a model whose head and embeddings are one tensor, vLLM samples from the policy, also where LoRA parts them."""

import copy
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.model import peft_config
from aurora_rl.models.loading import load_model

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def tiny_checkpoint(tiny_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model with tied embeddings, for the engine of this file."""
    loaded = load_model(tiny_checkpoint)
    for config in (loaded.model.config, loaded.model.config.text_config):
        config.tie_word_embeddings = True
    loaded.model.tie_weights()
    folder: Path = tmp_path_factory.mktemp("tied")
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("saved", [[], ["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]], ids="+".join)
def test_the_engine_samples_from_the_policy(generation, generate, make_prompts, difference, point_at, saved):
    loaded = generation.loaded
    assert loaded.model.lm_head.weight is loaded.model.get_input_embeddings().weight
    rows = [make_prompts(loaded, kind=kind, seed=seed) for seed, kind in enumerate(("separate", "text"))]
    config = peft_config(ModelArguments(model="", use_peft=True, lora_r=4), loaded)
    config.modules_to_save = ["seg_head", *saved]
    policy = get_peft_model(copy.deepcopy(loaded.model), config).eval()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name or ("modules_to_save" in name and "seg_head" not in name):
                parameter.add_(0.1 * torch.randn_like(parameter))
    point_at(policy)
    rollouts = generate(rows)
    assert difference(policy, loaded, rows, rollouts) < 1e-4
    assert difference(loaded.model, loaded, rows, rollouts) > 0.01  # control: the model before training
    if len(saved) == 1:  # control: the same policy with one tensor for both
        policy.get_base_model().lm_head = copy.deepcopy(loaded.model.lm_head)
        policy.get_base_model().set_input_embeddings(copy.deepcopy(loaded.model.get_input_embeddings()))
        assert difference(policy, loaded, rows, rollouts) > 0.01
