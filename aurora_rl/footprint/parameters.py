"""The model that will be trained, without the content of its weights, and the sizes of its parameters."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.model import lora_config
from aurora_rl.footprint.launch import Launch
from aurora_rl.models.checkpoint_files import check_checkpoint_files, read_adapter_config
from aurora_rl.models.heads import HEADS, head_attribute, head_configs
from aurora_rl.models.loading import SegmentationLoraConfig, complete_new_heads, freeze, read_model_config
from aurora_rl.models.mllm import MLLMFamily
from aurora_rl.models.quantization import is_quantized
from aurora_rl.models.sharding import loading_whole

TOWERS, LANGUAGE_MODEL, LORA, HEAD = "towers", "language model", "LoRA", "mask head"
#: A weight of 4 bits, its block's constant of 8 bits, and a float32 for 256 of those (Dettmers et al. 2023, section 3).
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclasses.dataclass(frozen=True)
class PartSize:
    """Parameters of one part of the model.

    Attributes:
        name: name of the part.
        numel: number of its parameters.
        num_bytes: bytes of its parameters.
        trained: number of trained parameters.
        trained_bytes: bytes of trained parameters.
        trained_tensors: number of trained tensors.
        largest_trained: number of parameters in the largest trained tensor.
    """

    name: str
    numel: int = 0
    num_bytes: int = 0
    trained: int = 0
    trained_bytes: int = 0
    trained_tensors: int = 0
    largest_trained: int = 0


@dataclasses.dataclass(frozen=True)
class MetaModel:
    """A model on the `meta` device: its tensors have shapes and dtypes, but no content.

    Attributes:
        model: the model, wrapped by PEFT if LoRA is trained.
        family: family of the model.
        parts: sizes by part.
        has_loaded_adapter: whether the adapter comes from an earlier training.
        loaded: sizes of the whole model when it is loaded, before DeepSpeed casts it.
        is_quantized: whether the language model's weights have 4 bits.
    """

    model: PreTrainedModel | PeftModel
    family: MLLMFamily
    parts: tuple[PartSize, ...]
    has_loaded_adapter: bool
    loaded: PartSize = PartSize("all")
    is_quantized: bool = False

    @property
    def base(self) -> PreTrainedModel:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def trained(self) -> PartSize:
        return total(self.parts)


def total(parts: Iterable[PartSize]) -> PartSize:
    """Add up the sizes of all parts."""
    names = [field.name for field in dataclasses.fields(PartSize)][1:-1]
    parts = list(parts)
    largest = max((part.largest_trained for part in parts), default=0)
    sums = {name: sum(getattr(part, name) for part in parts) for name in names}
    return PartSize("all", **sums, largest_trained=largest)


def build_meta_model(
    args: ModelArguments,
    launch: Launch,
    *,
    half: torch.dtype | None = None,
    needs: str | None = None,
    family: MLLMFamily | None = None,
) -> MetaModel:
    """Build the model that the arguments name, from its config alone.

    Args:
        args: arguments of the model.
        launch: how the run is spread over processes.
        half: dtype of mixed precision; DeepSpeed casts the whole model to it.
        needs: name of the head that the task needs; None for none.
        family: family of the model, if it is known already.

    Raises:
        ValueError: if the model has no such head.
    """
    check_checkpoint_files(args.model)
    adapter_file = find_adapter_config_file(args.model)
    adapter = read_adapter_config(adapter_file) if adapter_file else {}
    family, config, new_heads = read_model_config(
        adapter.get("base_model_name_or_path", args.model),
        adapter.get("segmenter") or args.segmenter,
        adapter.get("heads") or args.heads,
        family=family or args.family,
        needs=needs,
    )
    with contextlib.suppress(OSError):  # the hub cannot be reached; the decoders of all published SAMs are alike
        complete_new_heads(config, new_heads)
    dtype = getattr(torch, args.dtype) if args.dtype != "auto" else config.dtype or torch.float32
    # Under ZeRO-3 a plain constructor call would spread the weights, but these have no content.
    with loading_whole(), torch.device("meta"):
        model = family.model_class(config).to(dtype)
        for head in model.heads.values():
            head.float()
        if args.freeze:
            freeze(model, family.names_of_parts(args.freeze))
        model = _with_adapter(model, family, args, adapter, launch)
    loaded = total(measure_parts(model, family, args))
    if launch.is_deepspeed and half is not None:
        model.to(half)
    if args.load_in_4bit:  # TRL casts what is trained
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    parts = tuple(measure_parts(model, family, args))
    return MetaModel(model, family, parts, bool(adapter), loaded, args.load_in_4bit)


def _with_adapter(
    model: PreTrainedModel, family: MLLMFamily, args: ModelArguments, adapter: dict, launch: Launch
) -> PreTrainedModel | PeftModel:
    """Add LoRA as PEFT and TRL do: in float32, except that TRL keeps the model's dtype under ZeRO-3."""
    if adapter:
        as_trained = {**adapter, "inference_mode": False, "base_model_name_or_path": None}
        return get_peft_model(model, SegmentationLoraConfig(**as_trained))
    if not args.use_peft:
        return model
    config = lora_config(args, family, head_configs(model.config))
    keeps_dtype = launch.is_deepspeed and launch.zero_stage == 3 and not args.load_in_4bit
    return get_peft_model(model, config, autocast_adapter_dtype=not keeps_dtype)


def measure_parts(model: nn.Module, family: MLLMFamily, args: ModelArguments) -> Iterator[PartSize]:
    """Measure the parameters by part; `args` tells whether the weights will have 4 bits."""
    groups: dict[str, list[PartSize]] = {name: [] for name in (TOWERS, LANGUAGE_MODEL, LORA, HEAD)}
    for name, parameter in model.named_parameters():
        numel, num_bytes = parameter.numel(), parameter.numel() * parameter.element_size()
        if args.load_in_4bit and is_quantized(name, parameter, family):
            num_bytes = round(numel * NF4_BYTES)
        trained = (numel, num_bytes, 1, numel) if parameter.requires_grad else (0, 0, 0, 0)
        groups[_part_of(name, family)].append(PartSize(name, numel, num_bytes, *trained))
    for name, parameters in groups.items():
        if parameters:
            yield dataclasses.replace(total(parameters), name=name)


def _part_of(name: str, family: MLLMFamily) -> str:
    components = name.split(".")
    if not {*map(head_attribute, HEADS)}.isdisjoint(components):
        return HEAD
    if any(component.startswith("lora_") for component in components):
        return LORA
    return TOWERS if family.is_tower(name) else LANGUAGE_MODEL
