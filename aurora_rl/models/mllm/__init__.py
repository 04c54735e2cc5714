"""The families of omni-modal LLMs that can be trained, by Hugging Face `model_type`: a folder and a line each."""

from aurora_rl.models.mllm.base import EncodedPrompt, EnginePrompt, MLLMFamily
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from aurora_rl.models.mllm.sizes import ClipPass, ClipSize, TowerPass

FAMILIES: tuple[type[MLLMFamily], ...] = (Qwen2_5OmniFamily,)
MLLM_FAMILIES = {model_type: family for family in FAMILIES for model_type in family.model_types}


def get_family(model_type: str) -> MLLMFamily:
    """Return the family of a checkpoint.

    Raises:
        ValueError: if no family here has this `model_type`.
    """
    if model_type not in MLLM_FAMILIES:
        raise ValueError(
            f"no family for model_type {model_type!r}, there are {sorted(MLLM_FAMILIES)}: add a folder to "
            "aurora_rl/models/mllm/ and a line to FAMILIES"
        )
    return MLLM_FAMILIES[model_type]()


__all__ = [
    "FAMILIES",
    "MLLM_FAMILIES",
    "ClipPass",
    "ClipSize",
    "EncodedPrompt",
    "EnginePrompt",
    "MLLMFamily",
    "TowerPass",
    "get_family",
]
