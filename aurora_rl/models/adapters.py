"""A policy may have only adapters that sampling, scoring and saving all apply in the same way."""

from __future__ import annotations

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from aurora_rl.models.head_tokens import SuppressingHead


def check_saved_head(model: PreTrainedModel | PeftModel) -> None:
    """Refuse copies of the LM head that have lost the suppression of multimodal tokens.

    With tied embeddings PEFT's `ensure_weight_tying` replaces the head by a plain layer over the embeddings' weight.
    Without it, head and embeddings start from the same weight and are trained as two, which all code here supports.

    Raises:
        ValueError: if there is such a copy.
    """
    head = _head(model)
    copies = head.modules_to_save.items() if isinstance(head, ModulesToSaveWrapper) else ()
    for adapter, copy in copies:
        if not isinstance(copy, SuppressingHead):
            raise ValueError(
                f"the LM head of adapter {adapter!r} is a plain {type(copy).__name__}, which lets tokens of pictures "
                "and sound be sampled: PEFT's ensure_weight_tying makes it so. Set ensure_weight_tying to false; "
                "lm_head and embed_tokens in modules_to_save are then trained as two, from the same weight on"
            )


def check_trained_head(model: PreTrainedModel | PeftModel) -> None:
    """Refuse adapters on the LM head that scoring would ignore: TRL scores completions by the head's own weight.

    Raises:
        ValueError: if the head has such an adapter.
    """
    check_saved_head(model)
    head = _head(model)
    if isinstance(head, BaseTunerLayer | AuxiliaryTrainingWrapper) and not isinstance(head, ModulesToSaveWrapper):
        raise ValueError(
            f"lm_head has an adapter ({type(head).__name__}) that sampling would apply and scoring would not, since "
            "TRL reads the weight beneath it: remove it from target_modules or trainable_token_indices, and name "
            "lm_head in modules_to_save to train it"
        )


def _head(model: PreTrainedModel | PeftModel) -> nn.Module:
    policy: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    return policy.get_output_embeddings()
