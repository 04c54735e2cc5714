"""Load a model with a segmentation head from a hub name, a plain MLLM, a model trained here or a LoRA adapter.

Loading reads safetensors only and never runs a repository's code.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoProcessor, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from aurora_rl.models.adapters import check_saved_head
from aurora_rl.models.checkpoint_files import (
    check_adapter_is_whole,
    check_checkpoint_files,
    check_model_is_whole,
    named_weights,
    read_adapter_config,
)
from aurora_rl.models.clip_options import ClipOptions
from aurora_rl.models.end_of_turn import declare_ends
from aurora_rl.models.head_tokens import ensure_seg_token, init_seg_embedding, suppress_tokens
from aurora_rl.models.heads.segmenters import complete_segmenter_config
from aurora_rl.models.mllm import MLLMFamily, get_family
from aurora_rl.models.sharding import gathered, restore_rotary_frequencies
from aurora_rl.tasks.prompts import SEG_TOKEN

logger = logging.getLogger(__name__)

#: The only file of an adapter's weights that is read; PEFT would also unpickle an `adapter_model.bin`.
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclasses.dataclass
class SegmentationLoraConfig(LoraConfig):
    """LoRA with the config of its mask decoder: the config of a plain base model does not describe `seg_head`.

    Attributes:
        segmenter: config of the mask decoder that was trained beside the adapters.
        clip_options: options of the training clips, see `models.clip_options`.
    """

    segmenter: dict[str, Any] | None = None
    clip_options: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model with all that is needed to prepare its inputs.

    Attributes:
        model: the MLLM with its segmentation head, wrapped by PEFT where an adapter was loaded.
        processor: its processor, `[SEG]` included.
        family: the model's family, which encodes its inputs.
        seg_token_id: id of `[SEG]`.
    """

    model: PreTrainedModel | PeftModel
    processor: ProcessorMixin
    family: MLLMFamily
    seg_token_id: int

    @property
    def segmenter_config(self) -> dict[str, Any]:
        return self.model.config.segmenter

    @property
    def clip_options(self) -> ClipOptions | None:
        """The options of the model's training clips; None where its checkpoint does not hold them."""
        fields = getattr(self.model.config, "clip_options", None)
        return None if fields is None else ClipOptions.from_dict(fields)

    def remember_clips(self, options: ClipOptions) -> None:
        """Note the clips' options in the configs that checkpoints are saved with."""
        self.model.config.clip_options = options.to_dict()
        for adapter_config in getattr(self.model, "peft_config", {}).values():
            adapter_config.clip_options = options.to_dict()


def load_model(
    name_or_path: str,
    *,
    segmenter: dict[str, Any] | None = None,
    dtype: torch.dtype | str = "auto",
    attn_implementation: str | None = None,
    quantization_config: BitsAndBytesConfig | None = None,
    is_trainable: bool = True,
) -> LoadedModel:
    """Load a checkpoint for training or inference.

    Args:
        name_or_path: hub name or directory: a plain MLLM, a model saved by Aurora-RL, or a LoRA adapter of one.
        segmenter: config of the mask decoder to start with. A trained checkpoint has a config of its own, which must
            agree with this one.
        dtype: dtype of the weights.
        attn_implementation: transformers' attention implementation.
        quantization_config: transformers' quantization config, from `models.quantization`.
        is_trainable: whether a LoRA adapter is loaded for further training.

    Raises:
        ValueError: if a plain MLLM is loaded without `segmenter`, or a trained one with another than its own.
        CheckpointError: if weights are missing, damaged or of other shapes than the model's; a ValueError too.
        NotPlainFileError: if a file of the checkpoint is a pipe or a device; a ValueError too.
        OSError: if the weights are not there as safetensors.
    """
    check_checkpoint_files(name_or_path)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    if adapter_config := find_adapter_config_file(name_or_path):
        return _load_adapter(name_or_path, Path(adapter_config), segmenter, is_trainable=is_trainable, **options)
    loaded, is_new = _load_whole(name_or_path, segmenter, **options)
    decoder = loaded.model.seg_head.mask_decoder
    if is_new and hasattr(decoder, "load_pretrained"):
        with gathered(decoder.parameters()):
            decoder.load_pretrained()
    return loaded


def read_model_config(name_or_path: str, segmenter: dict[str, Any] | None) -> tuple[MLLMFamily, PretrainedConfig, bool]:
    """Read family and config of a checkpoint that is no adapter, and tell whether its mask decoder is new.

    Raises:
        ValueError: if a plain MLLM is named without `segmenter`, or a trained one with another than its own.
    """
    check_checkpoint_files(name_or_path)
    config_dict, _ = PretrainedConfig.get_config_dict(name_or_path)
    family = get_family(config_dict["model_type"])
    config = family.config_from(family.model_class.config_class.from_pretrained(name_or_path))
    own = getattr(config, "segmenter", None)
    config.segmenter = _agreed_segmenter(name_or_path, own, segmenter)
    if config.segmenter is None:
        raise ValueError(f"{name_or_path} has no mask decoder yet: give `segmenter`, such as {{'type': 'sam', ...}}")
    return family, config, own is None


def read_family(name_or_path: str) -> MLLMFamily:
    """Read the family of a checkpoint, or of an adapter's base model; no weights are read.

    Raises:
        ValueError: if the model's family is unknown.
    """
    check_checkpoint_files(name_or_path)
    if adapter_config := find_adapter_config_file(name_or_path):
        return read_family(read_adapter_config(adapter_config)["base_model_name_or_path"])
    return get_family(PretrainedConfig.get_config_dict(name_or_path)[0]["model_type"])


def read_segmenter_config(name_or_path: str, segmenter: dict[str, Any] | None) -> dict[str, Any]:
    """Read the config of the mask decoder that `load_model` would use; no weights are read.

    Raises:
        ValueError: for the reasons of `load_model`.
    """
    check_checkpoint_files(name_or_path)
    if adapter_config := find_adapter_config_file(name_or_path):
        fields = read_adapter_config(adapter_config)
        segmenter = _agreed_segmenter(name_or_path, fields.get("segmenter"), segmenter)
        name_or_path = fields["base_model_name_or_path"]
    _, config, is_new = read_model_config(name_or_path, segmenter)
    return complete_segmenter_config(config.segmenter) if is_new else config.segmenter


def saved_clip_options(name_or_path: str) -> ClipOptions | None:
    """Read `LoadedModel.clip_options` of a checkpoint or adapter without its weights."""
    fields = None
    check_checkpoint_files(name_or_path)
    if adapter_config := find_adapter_config_file(name_or_path):
        adapter = read_adapter_config(adapter_config)
        fields, name_or_path = adapter.get("clip_options"), adapter["base_model_name_or_path"]
        check_checkpoint_files(name_or_path)
    fields = fields or PretrainedConfig.get_config_dict(name_or_path)[0].get("clip_options")
    return None if fields is None else ClipOptions.from_dict(fields)


def has_segmenter(name_or_path: str) -> bool:
    """Tell whether a checkpoint that is no adapter was saved with a mask decoder."""
    check_checkpoint_files(name_or_path)
    return bool(PretrainedConfig.get_config_dict(name_or_path)[0].get("segmenter"))


def prepare_vocabulary(model: PreTrainedModel, processor: ProcessorMixin, family: MLLMFamily) -> int:
    """Add `[SEG]` to the tokenizer, make multimodal tokens impossible to sample, and return the id of `[SEG]`."""
    tokenizer = processor.tokenizer
    is_new, num_tokens = SEG_TOKEN not in tokenizer.get_vocab(), len(tokenizer)
    seg_token_id = ensure_seg_token(tokenizer, model.get_input_embeddings().num_embeddings)
    if is_new:
        init_seg_embedding(model, seg_token_id, num_tokens=num_tokens)
    suppress_tokens(model.get_output_embeddings(), family.multimodal_token_ids(model.config))
    return seg_token_id


def freeze(model: torch.nn.Module, names: list[str]) -> None:
    """Disable gradients in the sub-modules whose dotted name holds one of `names`.

    Raises:
        ValueError: if a name matches no parameter.
    """
    for name in names:
        hits = [p for key, p in model.named_parameters() if f".{name}." in f".{key}."]
        if not hits:
            raise ValueError(
                f"nothing to freeze is named {name!r}: write towers, or names as in model.named_parameters()"
            )
        for parameter in hits:
            parameter.requires_grad_(False)


def _load_adapter(
    name_or_path: str, config_file: Path, segmenter: dict[str, Any] | None, *, is_trainable: bool, **options: Any
) -> LoadedModel:
    fields = read_adapter_config(config_file)
    segmenter = _agreed_segmenter(name_or_path, fields.get("segmenter"), segmenter)
    loaded, is_new = _load_whole(fields["base_model_name_or_path"], segmenter, **options)
    if is_new and "seg_head" not in (fields.get("modules_to_save") or ()):
        raise ValueError(f"neither {name_or_path} nor its base model holds the weights of a mask decoder")
    weights = cached_file(name_or_path, ADAPTER_WEIGHTS)  # raises where the file is missing
    config = SegmentationLoraConfig(**{**fields, "segmenter": loaded.segmenter_config})
    if config.clip_options is not None:  # the adapter was trained later than its base model
        loaded.model.config.clip_options = config.clip_options
    with named_weights(name_or_path):
        model = PeftModel.from_pretrained(
            loaded.model,
            name_or_path,
            is_trainable=is_trainable,
            config=config,
            # ZeRO-3 wants all that is trained in one dtype, the model's; TRL makes new adapters so as well.
            autocast_adapter_dtype=not is_deepspeed_zero3_enabled(),
        )
    check_adapter_is_whole(name_or_path, weights, model)
    check_saved_head(model)
    return dataclasses.replace(loaded, model=model)


def _load_whole(name_or_path: str, segmenter: dict[str, Any] | None, **options: Any) -> tuple[LoadedModel, bool]:
    """Load a model that is no adapter, and tell whether its mask decoder is new, that is, random."""
    family, config, is_new = read_model_config(name_or_path, segmenter)
    if is_new:
        config.segmenter = complete_segmenter_config(config.segmenter)
    with named_weights(name_or_path):
        model, loading = family.model_class.from_pretrained(
            name_or_path,
            config=config,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by their names
            **options,
        )
    check_model_is_whole(name_or_path, loading, new_part="seg_head" if is_new else None)
    if is_new:
        model.seg_head.float()  # transformers keeps a module in float32 only if the checkpoint holds it
    restore_rotary_frequencies(model)
    processor = AutoProcessor.from_pretrained(name_or_path, trust_remote_code=False)
    seg_token_id = prepare_vocabulary(model, processor, family)
    declare_ends(model.generation_config, processor.tokenizer)
    return LoadedModel(model, processor, family, seg_token_id), is_new


def _agreed_segmenter(
    name_or_path: str, own: dict[str, Any] | None, asked: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Return the checkpoint's own mask decoder, or the requested one if it has none; the two must agree."""
    if own is not None and any(own.get(key) != value for key, value in (asked or {}).items()):
        raise ValueError(f"{name_or_path} was trained with the mask decoder {own}, but {asked} is asked for: drop it")
    return own or asked
