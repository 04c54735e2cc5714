"""Export of a trained model to one folder for others and the hub: safetensors, processor, configs, model card.

The folder is written file by file, and nothing is copied from a run's folder: files that a trainer writes beside its
weights (`training_args.bin`, optimiser states) are pickled, and opening them can run code.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from peft import PeftModel
from transformers import PretrainedConfig
from transformers.utils.peft_utils import find_adapter_config_file

from aurora_rl.export.hub_checks import check_is_new, check_token
from aurora_rl.export.model_card import CardDetails, write_model_card
from aurora_rl.models.checkpoint_files import check_checkpoint_files, read_adapter_config
from aurora_rl.models.heads import head_configs
from aurora_rl.models.loading import LoadedModel, load_model


@dataclasses.dataclass(frozen=True)
class HubExport:
    """Options of an export.

    Attributes:
        merge: whether LoRA is merged into the weights; False keeps the adapter alone, for its base on the hub.
        base_model: hub name of the model that this one was trained from; by default from its adapter's config.
        image_encoder: hub name of the SAM whose image encoder feeds the mask decoder; by default from the
            segmenter's config.
        dtype: dtype of the weights.
        family: name of the model's family, as for `load_model`.
    """

    merge: bool = True
    base_model: str | None = None
    image_encoder: str | None = None
    dtype: str = "auto"
    family: str | None = None


def export_for_hub(name_or_path: str, folder: str | Path, options: HubExport, details: CardDetails) -> Path:
    """Write a trained model so that `load_model`, `AuroraPipeline` and, if merged, `from_pretrained` load it anywhere.

    Args:
        name_or_path: hub name or folder of a model saved by Aurora-RL, or of a LoRA adapter.
        folder: an empty folder, which is made if it is missing.
        options: options of the export.
        details: contents of the card that the checkpoint does not hold.

    Raises:
        ValueError: if the model was not trained here, the folder holds files, or the model needs a part that exists on
            this machine only.
        OSError: if there is no such checkpoint, or it has no weights as safetensors.
    """
    folder = Path(folder)
    check_is_new(folder)
    check_checkpoint_files(name_or_path)
    adapter_config = find_adapter_config_file(name_or_path)
    if adapter_config is None and not _is_trained_here(name_or_path):
        raise ValueError(f"{name_or_path} has no mask decoder, it was not trained here: export it with --to vllm")
    base_model = _base_model(name_or_path, adapter_config, options)
    loaded = load_model(name_or_path, family=options.family, dtype=options.dtype, is_trainable=False)
    _name_image_encoder(loaded, options.image_encoder)
    if isinstance(loaded.model, PeftModel) and options.merge:
        loaded = dataclasses.replace(loaded, model=loaded.model.merge_and_unload())
        # LoRA's saved modules may have separated the LM head from the embeddings.
        are_tied = loaded.model.get_output_embeddings().weight is loaded.model.get_input_embeddings().weight
        for config in (loaded.model.config, loaded.model.config.get_text_config()):
            config.tie_word_embeddings = are_tied
    _save(loaded, folder, base_model)
    write_model_card(folder, loaded, details, base_model=base_model)
    return folder


def push_folder(folder: Path, repo_id: str, *, private: bool) -> str:
    """Upload an exported folder as one commit, and return its address.

    Raises:
        ValueError: if there is no token in the environment.
    """
    api = HfApi(token=check_token())
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload model")
    return f"{api.endpoint}/{repo_id}"


def _is_trained_here(name_or_path: str) -> bool:
    """Tell whether a checkpoint has a head, or notes on the clips that it was trained on."""
    fields = PretrainedConfig.get_config_dict(name_or_path)[0]
    return bool(head_configs(fields) or fields.get("clip_options"))


def _base_model(name_or_path: str, adapter_config: str | None, options: HubExport) -> str | None:
    """Return the hub name of an adapter's base model; None if only this machine has it and the adapter is merged."""
    if options.base_model is not None or adapter_config is None:
        return options.base_model
    base: str = read_adapter_config(adapter_config)["base_model_name_or_path"]
    if not Path(base).exists():
        return base
    if not options.merge:
        raise ValueError(
            f"the base model of the adapter {name_or_path} is the folder {base}, which others do not have: "
            "merge it, or name the same weights on the hub by --base_model"
        )
    return None


def _name_image_encoder(loaded: LoadedModel, image_encoder: str | None) -> None:
    """Replace the folder of the heads' image encoder by a name that others can load."""
    adapters = getattr(loaded.model, "peft_config", {}).values()
    configs = [config for holder in (loaded.model.config, *adapters) for config in head_configs(holder).values()]
    for config in configs:
        if image_encoder is not None and "checkpoint" in config:
            config["checkpoint"] = image_encoder
    for name, config in loaded.heads.items():
        checkpoint: Any = config.get("checkpoint")
        if checkpoint is not None and Path(checkpoint).exists():
            raise ValueError(
                f"the head {name!r} reads its image encoder from {checkpoint}, which others do not have: name the same "
                "weights on the hub by --image_encoder, such as facebook/sam-vit-huge"
            )


def _save(loaded: LoadedModel, folder: Path, base_model: str | None) -> None:
    if isinstance(loaded.model, PeftModel):
        for adapter_config in loaded.model.peft_config.values():
            adapter_config.base_model_name_or_path = base_model
        # Trained embeddings are among the adapter's `modules_to_save`; "auto" would send a request to the hub.
        loaded.model.save_pretrained(folder, save_embedding_layers=False)
        loaded.model.get_base_model().generation_config.save_pretrained(folder)
    else:
        loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
