"""The weights that vLLM needs, under the names it knows, one layer at a time.

LoRA is merged into copies: TRL merges in place and takes it out again, which in bf16 leaves a rounding error behind
at every step, and under ZeRO-3 holds the whole model on every process at once. Weights of 4 bits are unpacked for
vLLM, whatever layer they belong to: what it multiplies by is what the policy does.
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

from aurora_rl.models.mllm import MLLMFamily

#: Makes sharded parameters whole for a while: `trl.distributed.DistributedBackend.gather_params`.
Gather = Callable[[Sequence[nn.Parameter]], contextlib.AbstractContextManager[Any]]

#: Never part of vLLM's model.
HEAD = "seg_head"


def engine_weights(
    model: nn.Module,
    family: MLLMFamily,
    *,
    towers: bool,
    gather: Gather = lambda parameters: contextlib.nullcontext(),
) -> Iterator[tuple[str, torch.Tensor]]:
    """The language model's weights, LoRA merged and 4 bits unpacked; every process must run through all of them.

    Args:
        model: the policy, wrapped by PEFT or not, sharded or not.
        family: whose names vLLM knows.
        towers: whether the vision and audio towers come too; frozen ones change never.
        gather: makes parameters that are spread over the processes whole.

    Yields:
        vLLM's name and the whole tensor, which is valid until the next one is asked for.

    Raises:
        ValueError: for an adapter that is not plain LoRA on a linear layer, and for weights packed by another library
            than bitsandbytes.
    """
    policy = model.get_base_model() if isinstance(model, PeftModel) else model
    skipped = {HEAD} if towers else {HEAD, *family.tower_names}
    for name, weight in _layers(policy, "", skipped, gather):
        yield family.engine_prefix + name, weight


def changes_towers(model: nn.Module, family: MLLMFamily) -> bool:
    """Whether training changes the vision or audio tower, so that vLLM must be told."""
    return any(
        parameter.requires_grad and any(f".{tower}." in f".{name}" for tower in family.tower_names)
        for name, parameter in model.named_parameters()
    )


def _layers(module: nn.Module, prefix: str, skipped: set[str], gather: Gather) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(module, ModulesToSaveWrapper):
        # The frozen original and other adapters' copies, such as TRL's reference, stay here.
        yield from _layers(module.modules_to_save[module.active_adapters[0]], prefix, skipped, gather)
        return
    if isinstance(module, BaseTunerLayer):
        yield from _merged(module, prefix, gather)
        return
    if parameters := dict(module.named_parameters(recurse=False)):
        with gather(list(parameters.values())):
            for name, parameter in parameters.items():
                yield prefix + name, _whole(_unpacked(module, parameter, prefix + name))
    for name, child in module.named_children():
        if name not in skipped:
            # torch's activation checkpointing puts a wrapper of that name around a layer
            inner = prefix if name == "_checkpoint_wrapped_module" else f"{prefix}{name}."
            yield from _layers(child, inner, skipped, gather)


def check_adapters(model: nn.Module) -> None:
    """Refuse what `engine_weights` could not merge, before an engine is started for it.

    Raises:
        ValueError: for an adapter that is not plain LoRA on a linear layer.
    """
    policy = model.get_base_model() if isinstance(model, PeftModel) else model
    for name, module in policy.named_modules():
        if isinstance(module, BaseTunerLayer) and not name.startswith(f"{HEAD}."):
            _check_is_plain(module, name)


def _check_is_plain(layer: BaseTunerLayer, name: str) -> None:
    is_lora_on_linear = isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), nn.Linear)
    if not is_lora_on_linear or any(layer.use_dora.values()):
        raise ValueError(f"{name}: only plain LoRA on linear layers can be merged for vLLM, not {layer}")


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
    """A parameter as floating-point numbers, whether bitsandbytes has packed it into bytes or not."""
    if get_bnb_param_type(parameter):
        return dequantize_module_weight(module).detach()
    if not parameter.is_floating_point():
        raise ValueError(
            f"{name} is packed as {parameter.dtype}, which cannot be sent to vLLM: start from weights that are not "
            "quantised (load_in_4bit may quantise them), or set use_vllm to false"
        )
    return parameter.detach()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
