"""The families of omni-modal LLMs that can be trained, by Hugging Face `model_type`."""

from aurora_rl.models.mllm.base import EncodedPrompt, EnginePrompt, MLLMFamily
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily

MLLM_FAMILIES: dict[str, type[MLLMFamily]] = {
    "qwen2_5_omni": Qwen2_5OmniFamily,
    "qwen2_5_omni_thinker": Qwen2_5OmniFamily,
}


def get_family(model_type: str) -> MLLMFamily:
    """Return the family of a checkpoint.

    Raises:
        ValueError: if no family here has this `model_type`.
    """
    if model_type not in MLLM_FAMILIES:
        raise ValueError(
            f"no family for model_type {model_type!r}, there are {sorted(MLLM_FAMILIES)}: add a file to "
            "aurora_rl/models/mllm/ and a line to MLLM_FAMILIES"
        )
    return MLLM_FAMILIES[model_type]()


__all__ = ["MLLM_FAMILIES", "EncodedPrompt", "EnginePrompt", "MLLMFamily", "get_family"]
