"""LoRA on a language model of 4 bits a weight (QLoRA, Dettmers et al. 2023), by bitsandbytes. Not run yet."""

from __future__ import annotations

import importlib.util

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from aurora_rl.models.heads import HEADS, head_attribute
from aurora_rl.models.mllm import MLLMFamily


def _heads() -> list[str]:
    """Return what no family quantises: heads, all of which are trained, and `lm_head`, which TRL's kernel reads."""
    return [*map(head_attribute, HEADS), "lm_head"]


def not_quantized(family: MLLMFamily) -> list[str]:
    """Return the dotted names of modules that are not quantised: the heads, and the towers, which are small."""
    return [*_heads(), *family.tower_names]


def four_bit_config(family: MLLMFamily) -> BitsAndBytesConfig:
    """Return the config of 4-bit NormalFloat with doubly quantised constants, multiplied in bfloat16.

    Raises:
        ImportError: if bitsandbytes is not installed.
        RuntimeError: if there is no GPU.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(
            "load_in_4bit needs bitsandbytes: install the extra, pip install -e '.[quantization]', or drop load_in_4bit"
        )
    if not torch.cuda.is_available():
        raise RuntimeError("load_in_4bit needs a GPU, and torch sees none: drop load_in_4bit to train on the CPU")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=not_quantized(family),
    )


def is_quantized(name: str, parameter: nn.Parameter, family: MLLMFamily) -> bool:
    """Tell whether bitsandbytes replaces a parameter: a linear layer's weight outside `not_quantized`."""
    components = name.split(".")
    is_embedding = "embed_tokens" in components
    is_adapter = any(component.startswith("lora_") for component in components)
    is_left_alone = bool(set(components) & set(_heads())) or family.is_tower(name)
    return parameter.ndim == 2 and not (is_embedding or is_adapter or is_left_alone)
