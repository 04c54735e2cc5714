"""The families of omni-modal LLMs that can be trained, by Hugging Face `model_type`: a folder and a line each."""

from aurora_rl.models.mllm.audioflamingo3 import AudioFlamingo3Family
from aurora_rl.models.mllm.base import EncodedPrompt, EnginePrompt, MLLMFamily
from aurora_rl.models.mllm.gemma4 import Gemma4Family
from aurora_rl.models.mllm.gemma4_unified import Gemma4UnifiedFamily
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from aurora_rl.models.mllm.qwen2_5_vl import Qwen2_5VLFamily
from aurora_rl.models.mllm.qwen3_5 import Qwen3_5Family
from aurora_rl.models.mllm.qwen3_5_moe import Qwen3_5MoeFamily
from aurora_rl.models.mllm.qwen3_omni import Qwen3OmniFamily
from aurora_rl.models.mllm.qwen3_vl import Qwen3VLFamily
from aurora_rl.models.mllm.qwen3_vl_moe import Qwen3VLMoeFamily
from aurora_rl.models.mllm.sizes import ClipPass, ClipSize, TowerPass
from aurora_rl.named.objects import load_object

FAMILIES: tuple[type[MLLMFamily], ...] = (
    Qwen2_5OmniFamily,
    Qwen2_5VLFamily,
    Qwen3VLFamily,
    Qwen3VLMoeFamily,
    Qwen3_5Family,
    Qwen3_5MoeFamily,
    Qwen3OmniFamily,
    Gemma4Family,
    Gemma4UnifiedFamily,
    AudioFlamingo3Family,
)
MLLM_FAMILIES = {model_type: family for family in FAMILIES for model_type in family.model_types}


class UnreadModelTypeError(ValueError):
    """The family that a run names does not read a checkpoint's `model_type`."""


def load_family(spec: str) -> MLLMFamily:
    """Return a family by its name.

    Args:
        spec: a `model_type` of a family here, or where a class from outside is, 'package.module:Name' or
            'path/to/file.py:Name', whose code runs.

    Raises:
        ValueError: if there is no such family, or the object is none.
    """
    if spec in MLLM_FAMILIES:
        return MLLM_FAMILIES[spec]()
    if ":" not in spec:
        raise ValueError(
            f"there is no family {spec!r}: choose from {', '.join(MLLM_FAMILIES)}, or write 'package.module:Name' or "
            "'path/to/file.py:Name' for a family of your own"
        )
    found = load_object(spec, what="family")
    if not (isinstance(found, type) and issubclass(found, MLLMFamily)):
        raise ValueError(f"{spec} is no family, which is a subclass of {MLLMFamily.__module__}.{MLLMFamily.__name__}")
    if lacking := sorted(found.__abstractmethods__):
        raise ValueError(f"the family {spec} lacks {', '.join(lacking)}: see docs/new_mllm.md")
    return found()


def get_family(model_type: str, given: str | MLLMFamily | None = None) -> MLLMFamily:
    """Return the family of a checkpoint.

    Args:
        model_type: `model_type` of the checkpoint's config.
        given: the family, or its name as for `load_family`, where the run names one. A checkpoint never does.

    Raises:
        ValueError: if no family here has this `model_type`.
        UnreadModelTypeError: if the given family has not; a ValueError too.
    """
    if given is None and model_type in MLLM_FAMILIES:
        return MLLM_FAMILIES[model_type]()
    if given is None:
        raise ValueError(
            f"no family for model_type {model_type!r}, there are {sorted(MLLM_FAMILIES)}: name one of your own by the "
            "option `family`, as in `family: mine.py:MyFamily` (docs/new_mllm.md)"
        )
    family = load_family(given) if isinstance(given, str) else given
    if model_type not in family.model_types:
        raise UnreadModelTypeError(
            f"the checkpoint has model_type {model_type!r}, but the family {type(family).__name__} reads "
            f"{', '.join(family.model_types)}: name another by the option `family`, or leave it out"
        )
    return family


__all__ = [
    "FAMILIES",
    "MLLM_FAMILIES",
    "ClipPass",
    "ClipSize",
    "EncodedPrompt",
    "EnginePrompt",
    "MLLMFamily",
    "TowerPass",
    "UnreadModelTypeError",
    "get_family",
    "load_family",
]
