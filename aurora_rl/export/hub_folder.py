"""A trained model as one folder that others load and the hub takes: safetensors, processor, configs, model card.

The folder is written anew, file by file, and never copied from a run's: what a trainer leaves beside its weights
(`training_args.bin`, optimiser states) is pickled, and opening it can run code.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from aurora_rl.export.hub_checks import check_is_new, check_token
from aurora_rl.export.model_card import CardDetails, write_model_card
from aurora_rl.models.checkpoint_files import check_checkpoint_files, read_adapter_config
from aurora_rl.models.loading import LoadedModel, has_segmenter, load_model


@dataclasses.dataclass(frozen=True)
class HubExport:
    """What is written, and what it names that lies elsewhere.

    Attributes:
        merge: whether LoRA is merged into the weights; False keeps the adapter alone, for its base on the hub.
        base_model: hub name of the model that this one was trained from; by default as its adapter says.
        image_encoder: hub name of the SAM or SAM 2 whose image encoder feeds the mask decoder; by default as the
            segmenter's config says.
        dtype: of the weights.
    """

    merge: bool = True
    base_model: str | None = None
    image_encoder: str | None = None
    dtype: str = "auto"


def export_for_hub(name_or_path: str, folder: str | Path, options: HubExport, details: CardDetails) -> Path:
    """Write a trained model as `load_model`, `AuroraPipeline` and, merged, `from_pretrained` load it anywhere.

    Args:
        name_or_path: a model saved by Aurora-RL, or a LoRA adapter of one.
        folder: made if it is missing; must be empty.
        options: what is written.
        details: what the card says beside it.

    Raises:
        ValueError: for a model without a mask decoder, a folder that holds files, or a part that lies on this machine
            only.
        OSError: if there is no such checkpoint, or its weights are not there as safetensors.
    """
    folder = Path(folder)
    check_is_new(folder)
    check_checkpoint_files(name_or_path)
    adapter_config = find_adapter_config_file(name_or_path)
    if adapter_config is None and not has_segmenter(name_or_path):
        raise ValueError(f"{name_or_path} has no mask decoder, it was not trained here: export it with --to vllm")
    base_model = _base_model(name_or_path, adapter_config, options)
    loaded = load_model(name_or_path, dtype=options.dtype, is_trainable=False)
    _name_image_encoder(loaded, options.image_encoder)
    if isinstance(loaded.model, PeftModel) and options.merge:
        loaded = dataclasses.replace(loaded, model=loaded.model.merge_and_unload())
        _declare_ties(loaded.model)
    _save(loaded, folder, base_model)
    write_model_card(folder, loaded, details, base_model=base_model)
    return folder


def push_folder(folder: Path, repo_id: str, *, private: bool) -> str:
    """Upload an exported folder as one commit, and return its address.

    Raises:
        ValueError: as `check_token`.
    """
    api = HfApi(token=check_token())
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload model")
    return f"{api.endpoint}/{repo_id}"


def _base_model(name_or_path: str, adapter_config: str | None, options: HubExport) -> str | None:
    """Hub name of what lies beneath; None where only this machine has it, which a merged model does not mind."""
    if options.base_model is not None or adapter_config is None:
        return options.base_model
    beneath: str = read_adapter_config(adapter_config)["base_model_name_or_path"]
    if not Path(beneath).exists():
        return beneath
    if not options.merge:
        raise ValueError(
            f"the adapter {name_or_path} lies on the folder {beneath}, which others do not have: merge it, or name the "
            "same weights on the hub by --base_model"
        )
    return None


def _name_image_encoder(loaded: LoadedModel, image_encoder: str | None) -> None:
    """Replace the folder that the mask decoder's image encoder came from by a name that others can load."""
    configs = [loaded.segmenter_config, *(c.segmenter for c in getattr(loaded.model, "peft_config", {}).values())]
    for config in configs:
        if image_encoder is not None and "checkpoint" in config:
            config["checkpoint"] = image_encoder
    checkpoint: Any = loaded.segmenter_config.get("checkpoint")
    if checkpoint is not None and Path(checkpoint).exists():
        raise ValueError(
            f"the mask decoder reads its image encoder from {checkpoint}, which others do not have: name the same "
            "weights on the hub by --image_encoder, such as facebook/sam-vit-huge"
        )


def _declare_ties(model: PreTrainedModel) -> None:
    """Say at every place of the config whether head and embeddings are one; LoRA's saved modules part them."""
    are_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = are_tied


def _save(loaded: LoadedModel, folder: Path, base_model: str | None) -> None:
    if isinstance(loaded.model, PeftModel):
        for adapter_config in loaded.model.peft_config.values():
            adapter_config.base_model_name_or_path = base_model
        # An adapter whose embeddings were trained holds them among `modules_to_save`; "auto" would ask the hub.
        loaded.model.save_pretrained(folder, save_embedding_layers=False)
        loaded.model.get_base_model().generation_config.save_pretrained(folder)
    else:
        loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
