"""The weights that vLLM needs, under its names, one layer at a time.

LoRA is merged into copies: TRL merges in place and unmerges again, which in bf16 adds a rounding error at every step,
and under ZeRO-3 holds the whole model on every process at once. Weights of 4 bits are unpacked in every layer, so that
vLLM multiplies by the numbers that the policy multiplies by.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.integrations import dequantize_module_weight, get_bnb_param_type
from torch import nn
from torch.distributed.tensor import DTensor

from aurora_rl.models.heads import HEADS, head_attribute
from aurora_rl.models.mllm import MLLMFamily

#: Gathers sharded parameters while a block runs: `trl.distributed.DistributedBackend.gather_params`.
Gather = Callable[[Sequence[nn.Parameter]], contextlib.AbstractContextManager[Any]]


def engine_weights(
    model: nn.Module,
    family: MLLMFamily,
    *,
    towers: bool,
    gather: Gather = lambda parameters: contextlib.nullcontext(),
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights for vLLM, LoRA merged and 4 bits unpacked; every process must iterate over all of them.

    Args:
        model: the policy, wrapped by PEFT or not, sharded or not.
        family: the family, which gives vLLM's names of the weights.
        towers: whether the vision and audio towers are included; frozen towers never change.
        gather: function that gathers parameters that are spread over the processes.

    Yields:
        vLLM's name and the whole tensor, which is valid until the next one is drawn.

    Raises:
        ValueError: if an adapter is not plain LoRA on a linear layer, or if weights are packed by another library than
            bitsandbytes.
    """
    policy = model.get_base_model() if isinstance(model, PeftModel) else model
    heads = map(head_attribute, HEADS)  # never part of vLLM's model
    skipped = {*heads} if towers else {*heads, *family.tower_names}  # dotted names, from the model on
    for name, weight in _layers(policy, "", skipped, gather):
        yield family.engine_name(name), family.engine_weight(name, weight)


def changes_towers(model: nn.Module, family: MLLMFamily) -> bool:
    """Return whether training changes the vision or audio tower, whose weights vLLM needs then."""
    return any(parameter.requires_grad and family.is_tower(name) for name, parameter in model.named_parameters())


def _layers(module: nn.Module, prefix: str, skipped: set[str], gather: Gather) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(module, ModulesToSaveWrapper):
        # The frozen original and other adapters' copies, such as TRL's reference, are not sent.
        yield from _layers(module.modules_to_save[module.active_adapters[0]], prefix, skipped, gather)
        return
    if isinstance(module, BaseTunerLayer):
        yield from _merged(module, prefix, gather)
        return
    if parameters := dict(module.named_parameters(recurse=False)):
        with gather(list(parameters.values())):
            for name, parameter in parameters.items():
                weight = _unpacked(module, parameter, prefix + name)
                yield prefix + name, weight.full_tensor() if isinstance(weight, DTensor) else weight
    # What a checkpoint holds beside weights, such as a scale of each layer; it is never trained nor sharded.
    for name, buffer in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            yield prefix + name, buffer.detach()
    for name, child in module.named_children():
        # torch's activation checkpointing wraps a layer in a module of that name
        inner = prefix if name == "_checkpoint_wrapped_module" else f"{prefix}{name}."
        if inner.removesuffix(".") not in skipped:
            yield from _layers(child, inner, skipped, gather)


def check_adapters(model: nn.Module) -> None:
    """Refuse adapters that `engine_weights` cannot merge, before an engine is started.

    Raises:
        ValueError: if an adapter is not plain LoRA on a linear layer.
    """
    policy = model.get_base_model() if isinstance(model, PeftModel) else model
    for name, module in policy.named_modules():
        if isinstance(module, BaseTunerLayer) and name.split(".")[0] not in map(head_attribute, HEADS):
            _check_is_plain(module, name)


def _check_is_plain(layer: BaseTunerLayer, name: str) -> None:
    is_lora_on_linear = isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), nn.Linear)
    if not is_lora_on_linear or any(layer.use_dora.values()):
        raise ValueError(
            f"{name}: only plain LoRA on linear layers can be merged for vLLM, not {layer}; train LoRA on the "
            "attention, or set use_vllm to false"
        )


def _merged(layer: BaseTunerLayer, prefix: str, gather: Gather) -> Iterator[tuple[str, torch.Tensor]]:
    _check_is_plain(layer, prefix[:-1])
    base = layer.get_base_layer()
    with gather(list(layer.parameters())):
        if any(isinstance(parameter, DTensor) for parameter in layer.parameters()):
            raise ValueError("LoRA under FSDP cannot be sent to vLLM: use DeepSpeed ZeRO")
        weight = _unpacked(base, base.weight, prefix + "weight")
        for adapter in layer.active_adapters:
            if adapter in layer.lora_A:
                weight = weight + layer.get_delta_weight(adapter).to(weight.dtype)
        yield prefix + "weight", weight
        if isinstance(base.bias, nn.Parameter):
            yield prefix + "bias", base.bias.detach()


def _unpacked(module: nn.Module, parameter: torch.Tensor, name: str) -> torch.Tensor:
    """Return a parameter as floating-point numbers, unpacked if bitsandbytes has packed it into bytes."""
    if get_bnb_param_type(parameter):
        return dequantize_module_weight(module).detach()
    if not parameter.is_floating_point():
        raise ValueError(
            f"{name} is packed as {parameter.dtype}, which cannot be sent to vLLM: start from weights that are not "
            "quantised (load_in_4bit may quantise them), or set use_vllm to false"
        )
    return parameter.detach()
