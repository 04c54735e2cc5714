"""The directory that vLLM loads: the family's full layout, its processor, `[SEG]` in the tokenizer."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import save_torch_state_dict
from transformers import PretrainedConfig
from transformers.utils.peft_utils import find_adapter_config_file

from aurora_rl.models.loading import LoadedModel, has_segmenter, load_model
from aurora_rl.rollout.weights import engine_weights


def export_for_vllm(loaded: LoadedModel, folder: str | Path, *, weights: bool = True) -> Path:
    """Write a model as vLLM loads it; the segmentation head stays behind, since vLLM only writes text.

    The vocabulary keeps its padded size, in which `[SEG]` has its row. What is written can be loaded again by
    `models.loading.load_model`, as a plain MLLM.

    Args:
        loaded: from `load_model`: of a trained model, a LoRA adapter (which is merged) or a hub name.
        folder: made if it is missing.
        weights: False where they arrive by weight sync, in GRPO's colocate mode.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    engine_config(loaded).save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    if generation_config := getattr(loaded.model, "generation_config", None):
        generation_config.save_pretrained(folder)
    if weights:
        # A copy: tensors are valid only until the next one, and safetensors wants none to share memory.
        state = {
            name: tensor.to("cpu", copy=True).contiguous()
            for name, tensor in engine_weights(loaded.model, loaded.family, towers=True)
        }
        save_torch_state_dict(state, folder, safe_serialization=True)
    return folder


def export_checkpoint(name_or_path: str, folder: str | Path, *, dtype: str = "auto") -> Path:
    """Load a checkpoint of any kind and write it as vLLM loads it.

    Raises:
        OSError: if there is no such checkpoint, or its weights are not there as safetensors.
        ValueError: for a family that is not known.
    """
    needs_head = find_adapter_config_file(name_or_path) is None and not has_segmenter(name_or_path)
    # A plain MLLM gets a mask decoder to be loaded at all; it stays behind, so the smallest will do.
    segmenter = {"type": "dot", "image_size": 32, "width": 8} if needs_head else None
    return export_for_vllm(load_model(name_or_path, segmenter=segmenter, dtype=dtype, is_trainable=False), folder)


def engine_config(loaded: LoadedModel) -> PretrainedConfig:
    """The config of the full model, as the hub's checkpoints have it."""
    config = loaded.family.engine_config(loaded.model.config)
    config.dtype = loaded.model.dtype
    return config
