"""Load a model with its heads from a hub name, a plain MLLM, a model trained here or a LoRA adapter.

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
from aurora_rl.models.head_tokens import (
    ensure_head_token,
    head_token_id,
    init_seg_embedding,
    suppress_tokens,
    vocabulary_rows,
)
from aurora_rl.models.heads import MaskHead, head_attribute, head_class, head_configs, head_fields
from aurora_rl.models.heads.segmenters import FrameEncoder
from aurora_rl.models.mllm import MLLMFamily, UnreadModelTypeError, get_family
from aurora_rl.models.sharding import restore_rotary_frequencies

logger = logging.getLogger(__name__)

#: The only file of an adapter's weights that is read; PEFT would also unpickle an `adapter_model.bin`.
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclasses.dataclass
class SegmentationLoraConfig(LoraConfig):
    """LoRA with the configs of the heads: the config of a plain base model does not describe them.

    Attributes:
        segmenter: config of the mask decoder that was trained beside the adapters.
        heads: configs of other heads that were, by name.
        clip_options: options of the training clips, see `models.clip_options`.
    """

    segmenter: dict[str, Any] | None = None
    heads: dict[str, dict[str, Any]] | None = None
    clip_options: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model with all that is needed to prepare its inputs.

    Attributes:
        model: the MLLM with its heads, wrapped by PEFT where an adapter was loaded.
        processor: its processor, the heads' tokens included.
        family: the model's family, which encodes its inputs.
    """

    model: PreTrainedModel | PeftModel
    processor: ProcessorMixin
    family: MLLMFamily

    @property
    def heads(self) -> dict[str, dict[str, Any]]:
        """The config of each head by name."""
        return head_configs(self.model.config)

    @property
    def head_token_ids(self) -> dict[str, int]:
        """The id of each head's token by the head's name."""
        return {name: head_token_id(self.processor.tokenizer, head_class(name).token) for name in self.heads}

    @property
    def seg_token_id(self) -> int:
        """The id of `[SEG]`; a model without a mask head raises a ValueError."""
        return head_token_id(self.processor.tokenizer, MaskHead.token)

    @property
    def segmenter_config(self) -> dict[str, Any]:
        """The config of the mask decoder; a model without one raises a ValueError."""
        check_has_head(self.model.config, MaskHead.name, str(self.model.config._name_or_path))
        return self.heads[MaskHead.name]

    def frame_encoder(self, head: str) -> FrameEncoder:
        """Build the frozen encoder of a head's frame inputs; a model without this head raises a ValueError."""
        check_has_head(self.model.config, head, str(self.model.config._name_or_path))
        return head_class(head).frame_encoder(self.heads[head])

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
    family: str | MLLMFamily | None = None,
    segmenter: dict[str, Any] | None = None,
    heads: dict[str, dict[str, Any]] | None = None,
    needs: str | None = None,
    dtype: torch.dtype | str = "auto",
    attn_implementation: str | None = None,
    quantization_config: BitsAndBytesConfig | None = None,
    is_trainable: bool = True,
) -> LoadedModel:
    """Load a checkpoint for training or inference.

    Args:
        name_or_path: hub name or directory: a plain MLLM, a model saved by Aurora-RL, or a LoRA adapter of one.
        family: the model's family, or its name as for `mllm.load_family`; None for the one here that reads the
            checkpoint's `model_type`.
        segmenter: config of the mask decoder to start with. A trained checkpoint has a config of its own, which must
            agree with this one.
        heads: configs of other heads to start with, by name; the same holds for them.
        needs: name of the head that the caller's task needs, if any.
        dtype: dtype of the weights.
        attn_implementation: transformers' attention implementation.
        quantization_config: transformers' quantization config, from `models.quantization`.
        is_trainable: whether a LoRA adapter is loaded for further training.

    Raises:
        ValueError: if the model has not the head that `needs` names, or a trained head is given another config, or the
            family is unknown.
        CheckpointError: if weights are missing, damaged or of other shapes than the model's; a ValueError too.
        NotPlainFileError: if a file of the checkpoint is a pipe or a device; a ValueError too.
        OSError: if the weights are not there as safetensors.
    """
    check_checkpoint_files(name_or_path)
    options: dict[str, Any] = {"family": family, "dtype": dtype, "attn_implementation": attn_implementation}
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    if adapter_config := find_adapter_config_file(name_or_path):
        return _load_adapter(
            name_or_path, Path(adapter_config), segmenter, heads, needs=needs, is_trainable=is_trainable, **options
        )
    loaded, new_heads = _load_whole(name_or_path, segmenter, heads, needs=needs, **options)
    for name in new_heads:
        getattr(loaded.model, head_attribute(name)).load_pretrained()
    return loaded


def read_model_config(
    name_or_path: str,
    segmenter: dict[str, Any] | None,
    heads: dict[str, dict[str, Any]] | None = None,
    *,
    family: str | MLLMFamily | None = None,
    needs: str | None = None,
) -> tuple[MLLMFamily, PretrainedConfig, list[str]]:
    """Read family and config of a checkpoint that is no adapter, and tell which of its heads are new.

    Raises:
        ValueError: if the model has not the head that `needs` names, or a trained head is given another config, or the
            family is unknown.
    """
    family = read_family(name_or_path, family)
    config = family.config_from(family.model_class.config_class.from_pretrained(name_or_path))
    if getattr(config.get_text_config(), "output_router_logits", False):
        # `generate` would compute the router loss, and fail on it with a cache. Training asks for it by itself.
        config.get_text_config().output_router_logits = False
    family = family.for_config(config)
    own = head_configs(config)
    agreed = _agreed_heads(name_or_path, own, segmenter, heads)
    for field, value in head_fields(agreed).items():
        if value is not None:
            setattr(config, field, value)
    if needs is not None:
        check_has_head(config, needs, name_or_path)
    return family, config, [name for name in agreed if name not in own]


def check_has_head(config: Any, name: str, name_or_path: str) -> None:
    """Check that a model's config or an adapter's describes a head.

    Raises:
        ValueError: if it does not, naming the checkpoint and the option to set.
    """
    if name in head_configs(config):
        return
    if name == MaskHead.name:
        raise ValueError(f"{name_or_path} has no mask decoder yet: give `segmenter`, such as {{'type': 'sam', ...}}")
    raise ValueError(f"{name_or_path} has no head {name!r} yet: give its config, `heads: {{{name}: ...}}`")


def read_family(name_or_path: str, family: str | MLLMFamily | None = None) -> MLLMFamily:
    """Return the family of a checkpoint, or of an adapter's base model; no weights are read.

    Args:
        name_or_path: hub name or directory.
        family: the family, or its name, where the run names one.

    Raises:
        ValueError: if the model's family is unknown, or another than the given one.
    """
    check_checkpoint_files(name_or_path)
    if adapter_config := find_adapter_config_file(name_or_path):
        return read_family(read_adapter_config(adapter_config)["base_model_name_or_path"], family)
    return get_family(PretrainedConfig.get_config_dict(name_or_path)[0]["model_type"], family)


def family_that_reads(name_or_path: str, family: str | None) -> MLLMFamily:
    """Return the run's own family if it reads a checkpoint, else the one here: a teacher may be of another family.

    Raises:
        ValueError: if neither reads it.
    """
    try:
        return read_family(name_or_path, family)
    except UnreadModelTypeError:
        return read_family(name_or_path)


def complete_new_heads(config: PretrainedConfig, new_heads: list[str]) -> None:
    """Complete the configs of new heads by the fields of the checkpoints that they name."""
    configs = head_configs(config)
    completed = {name: head_class(name).complete_config(configs[name]) for name in new_heads}
    for field, value in head_fields(configs | completed).items():
        if value is not None:
            setattr(config, field, value)


def read_head_configs(
    name_or_path: str,
    segmenter: dict[str, Any] | None,
    heads: dict[str, dict[str, Any]] | None = None,
    *,
    family: str | MLLMFamily | None = None,
    needs: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Read the configs of the heads that `load_model` would use, by name; no weights are read.

    Raises:
        ValueError: for the reasons of `load_model`.
    """
    check_checkpoint_files(name_or_path)
    if adapter_config := find_adapter_config_file(name_or_path):
        fields = read_adapter_config(adapter_config)
        asked = head_fields(_agreed_heads(name_or_path, head_configs(fields), segmenter, heads))
        segmenter, heads, name_or_path = asked["segmenter"], asked["heads"], fields["base_model_name_or_path"]
    _, config, new_heads = read_model_config(name_or_path, segmenter, heads, family=family, needs=needs)
    complete_new_heads(config, new_heads)
    return head_configs(config)


def read_segmenter_config(
    name_or_path: str, segmenter: dict[str, Any] | None, *, family: str | MLLMFamily | None = None
) -> dict[str, Any]:
    """Read the config of the mask decoder that `load_model` would use; no weights are read.

    Raises:
        ValueError: for the reasons of `load_model`, and if there is no mask decoder.
    """
    return read_head_configs(name_or_path, segmenter, family=family, needs=MaskHead.name)[MaskHead.name]


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


def prepare_vocabulary(model: PreTrainedModel, processor: ProcessorMixin, family: MLLMFamily) -> dict[str, int]:
    """Add the tokens of the model's heads to the tokenizer, and make multimodal tokens impossible to sample.

    Returns:
        The id of each head's token by the head's name.
    """
    tokenizer = processor.tokenizer
    num_tokens, token_ids = len(tokenizer), {}
    for name in head_configs(model.config):
        token = head_class(name).token
        is_new = token not in tokenizer.get_vocab()
        token_id = ensure_head_token(tokenizer, vocabulary_rows(model), token)
        if is_new:
            init_seg_embedding(model, token_id, num_tokens=num_tokens)
        token_ids[name] = token_id
    suppress_tokens(model.get_output_embeddings(), family.suppressed_token_ids(processor, model.config))
    return token_ids


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
    name_or_path: str,
    config_file: Path,
    segmenter: dict[str, Any] | None,
    heads: dict[str, dict[str, Any]] | None,
    *,
    needs: str | None,
    is_trainable: bool,
    **options: Any,
) -> LoadedModel:
    fields = read_adapter_config(config_file)
    asked = head_fields(_agreed_heads(name_or_path, head_configs(fields), segmenter, heads))
    loaded, new_heads = _load_whole(fields["base_model_name_or_path"], **asked, needs=needs, **options)
    saved = fields.get("modules_to_save") or ()
    for name in new_heads:
        if head_attribute(name) not in saved:
            what = "a mask decoder" if name == MaskHead.name else f"the head {name!r}"
            raise ValueError(f"neither {name_or_path} nor its base model holds the weights of {what}")
    weights = cached_file(name_or_path, ADAPTER_WEIGHTS)  # raises where the file is missing
    config = SegmentationLoraConfig(**{**fields, **head_fields(loaded.heads)})
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


def _load_whole(
    name_or_path: str,
    segmenter: dict[str, Any] | None,
    heads: dict[str, dict[str, Any]] | None,
    *,
    family: str | MLLMFamily | None,
    needs: str | None,
    **options: Any,
) -> tuple[LoadedModel, list[str]]:
    """Load a model that is no adapter, and tell which of its heads are new, that is, random."""
    family, config, new_heads = read_model_config(name_or_path, segmenter, heads, family=family, needs=needs)
    complete_new_heads(config, new_heads)
    with named_weights(name_or_path):
        model, loading = family.model_class.from_pretrained(
            name_or_path,
            config=config,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by their names
            **options,
        )
    new_parts = [head_attribute(name) for name in new_heads]
    check_model_is_whole(name_or_path, loading, new_parts=new_parts)
    for part in new_parts:
        getattr(model, part).float()  # transformers keeps a module in float32 only if the checkpoint holds it
    restore_rotary_frequencies(model)
    processor = AutoProcessor.from_pretrained(name_or_path, trust_remote_code=False)
    prepare_vocabulary(model, processor, family)
    declare_ends(model.generation_config, processor.tokenizer)
    return LoadedModel(model, processor, family), new_heads


def _agreed_heads(
    name_or_path: str,
    own: dict[str, dict[str, Any]],
    segmenter: dict[str, Any] | None,
    heads: dict[str, dict[str, Any]] | None,
) -> dict[str, dict[str, Any]]:
    """Return the checkpoint's own heads, and those asked for that it has not; a head that is both must agree."""
    asked = head_configs({"segmenter": segmenter, "heads": heads})
    for name, config in asked.items():
        theirs = own.get(name)
        if theirs is not None and any(theirs.get(key) != value for key, value in config.items()):
            what = "the mask decoder" if name == MaskHead.name else f"the head {name!r} of config"
            raise ValueError(f"{name_or_path} was trained with {what} {theirs}, but {config} is asked for: drop it")
    return asked | own
