"""The recipe whose engine shares each GPU with the trainer: its length and its share of memory are enough to start."""

import json
from pathlib import Path

import pytest
import yaml

from aurora_rl.trainers.grpo_config import AuroraGRPOConfig

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "ref_avs"

#: Tokens of a prompt of 10 frames at 448 x 448 with 10 s of sound, by `aurora-rl footprint`.
PROMPT = 1_703
WEIGHTS = 17.9e9  # language model 15.2 GB, towers 2.6 GB, bf16
#: What vLLM takes beside weights, keys and values: its profiled peak and CUDA graphs; estimated.
WORKING = 5e9


def read(name: str) -> dict:
    return yaml.safe_load((RECIPES / name).read_text())


@pytest.fixture(scope="module")
def recipe() -> dict:
    return read("grpo_7b_vllm.yaml")


def key_and_value_bytes() -> int:
    """Of one token of the 7B model, by its config: 28 layers x 4 heads x 128 x (key, value) x 2 bytes."""
    config = json.loads((ROOT / "docs/configs/qwen2_5_omni_7b/config.json").read_text())
    text = config.get("thinker_config", config)["text_config"]
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    return text["num_hidden_layers"] * text["num_key_value_heads"] * head_dim * 2 * 2


def test_the_length_holds_prompt_and_completion(recipe: dict) -> None:
    assert PROMPT + recipe["max_completion_length"] <= recipe["vllm_max_model_length"]


def test_the_share_of_memory_holds_weights_and_every_row_of_a_step(recipe: dict) -> None:
    assert key_and_value_bytes() == 57_344
    rows = recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"]
    free = recipe["vllm_gpu_memory_utilization"] * 80e9 - WEIGHTS - WORKING
    assert free > rows * (PROMPT + recipe["max_completion_length"]) * key_and_value_bytes()
    assert free > recipe["vllm_max_model_length"] * key_and_value_bytes()  # vLLM starts for one row of full length


def test_ratios_are_taken_token_by_token(recipe: dict) -> None:
    options = {name: value for name, value in recipe.items() if name.startswith("vllm_")}
    args = AuroraGRPOConfig("out", use_cpu=True, bf16=False, use_vllm=True, **options)
    assert args.vllm_importance_sampling_correction
    assert args.vllm_importance_sampling_mode.startswith("token")


def test_it_is_the_recipe_of_transformers_but_for_vllm(recipe: dict) -> None:
    other = read("grpo_7b.yaml")
    differs = {name for name in recipe.keys() | other.keys() if recipe.get(name) != other.get(name)}
    assert differs == {name for name in recipe if "vllm" in name} | {"output_dir"}
