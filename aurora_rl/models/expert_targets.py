"""Tells from configs alone whether LoRA adapts experts, before anything is loaded; no torch is imported.

A layer's experts are stacked in two tensors, which vLLM is not sent with LoRA merged in (`rollout.weights`). PEFT
adapts them where `target_parameters` names them, and where `target_modules` has the names of their former layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Names in a layer with experts that are no linear layers: of the stacked ones, and of the router.
PROJECTIONS = ("gate_proj", "up_proj", "down_proj", "gate_up_proj")
MODULES = ("experts", "gate")
ALL_LINEAR = "all-linear"  # PEFT's word for all of them


def expert_targets(adapter: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Return what of an adapter's targets are experts or their router, as the adapter names them.

    Args:
        adapter: fields of the adapter's config: `target_modules` and `target_parameters`.
        config: fields of the base model's config.
    """
    named = list(adapter.get("target_parameters") or ())
    targets = adapter.get("target_modules") or ()
    if not has_experts(config):
        return named
    if isinstance(targets, str):
        return [*named, targets] if targets == ALL_LINEAR or _matches_experts(targets) else named
    return [*named, *(target for target in targets if target.split(".")[-1] in (*PROJECTIONS, *MODULES))]


def has_experts(config: Any) -> bool:
    """Tell whether a model's config, or any config inside it, has experts."""
    if not isinstance(config, Mapping):
        return False
    return bool(config.get("num_experts")) or any(map(has_experts, config.values()))


def _matches_experts(pattern: str) -> bool:
    layers = ("model.layers.0.mlp", "model.language_model.layers.0.mlp")
    inside = [f"experts.{name}" for name in PROJECTIONS]
    return any(re.fullmatch(pattern, f"{layer}.{name}") for layer in layers for name in (*MODULES, *inside))


def refusal(targets: list[str]) -> str:
    """Return why vLLM cannot sample for such an adapter, and what to do."""
    return (
        f"adapts experts ({', '.join(targets)}), which cannot be sent to vLLM with LoRA merged in: train LoRA on the "
        "attention (target_modules of q_proj and v_proj, the default here), or set use_vllm to false"
    )
