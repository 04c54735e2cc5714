"""Export of the directory that vLLM loads: the family's full layout, its processor, `[SEG]` in the tokenizer."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import save_torch_state_dict
from transformers import PretrainedConfig
from transformers.utils.peft_utils import find_adapter_config_file

from aurora_rl.models.loading import LoadedModel, load_model, read_head_configs
from aurora_rl.rollout.weights import engine_weights


def export_for_vllm(loaded: LoadedModel, folder: str | Path, *, weights: bool = True) -> Path:
    """Write a model in vLLM's layout, without its segmentation head, since vLLM only samples text.

    The vocabulary keeps its padded size, which has a row for `[SEG]`. `models.loading.load_model` loads the directory
    as a plain MLLM.

    Args:
        loaded: the result of `load_model` for a trained model, a LoRA adapter (which is merged) or a hub name.
        folder: the directory, which is made if it is missing.
        weights: whether weights are written; False in GRPO's colocate mode, where a weight sync sends them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    engine_config(loaded).save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    if generation_config := getattr(loaded.model, "generation_config", None):
        generation_config.save_pretrained(folder)
    if weights:
        # Copies: a tensor is valid only until the next one, and safetensors refuses tensors that share memory.
        state = {
            name: tensor.to("cpu", copy=True).contiguous()
            for name, tensor in engine_weights(loaded.model, loaded.family, towers=True)
        }
        save_torch_state_dict(state, folder, safe_serialization=True)
    return folder


def export_checkpoint(name_or_path: str, folder: str | Path, *, dtype: str = "auto", family: str | None = None) -> Path:
    """Load a checkpoint of any kind and write it in vLLM's layout.

    Args:
        name_or_path: hub name or folder of the checkpoint.
        folder: the directory, which is made if it is missing.
        dtype: dtype of the written weights.
        family: name of the model's family, as for `load_model`.

    Raises:
        OSError: if there is no such checkpoint, or it has no weights as safetensors.
        ValueError: if the model's family is unknown.
    """
    is_adapter = find_adapter_config_file(name_or_path) is not None
    needs_head = not is_adapter and not read_head_configs(name_or_path, None, family=family)
    # So that the engine of a plain MLLM knows `[SEG]`; the mask decoder is not written, the smallest will do.
    segmenter = {"type": "dot", "image_size": 32, "width": 8} if needs_head else None
    loaded = load_model(name_or_path, family=family, segmenter=segmenter, dtype=dtype, is_trainable=False)
    return export_for_vllm(loaded, folder)


def engine_config(loaded: LoadedModel) -> PretrainedConfig:
    """Return the config of the full model, which the hub's checkpoints have."""
    config = loaded.family.engine_config(loaded.model.config)
    config.dtype = loaded.model.dtype
    return config
