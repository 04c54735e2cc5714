"""One rule ends a completion, in rollouts by transformers and by vLLM, evaluation, `segment` and the demo.

A completion ends with the first token that is the tokenizer's end of turn or an end in the model's generation config;
this token is part of the completion. TRL's trainer counts by the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase


def end_token_ids(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig | None) -> list[int]:
    """List every token that ends a completion, the tokenizer's first.

    Args:
        tokenizer: tokenizer whose `eos_token` training appends to every completion.
        generation_config: the model's generation config; its `eos_token_id` may be one id, several or none.

    Raises:
        ValueError: if neither names such a token.
    """
    declared = getattr(generation_config, "eos_token_id", None)
    several = declared if isinstance(declared, (list, tuple)) else [declared]
    ids = [int(token_id) for token_id in (tokenizer.eos_token_id, *several) if token_id is not None]
    if not ids:
        raise ValueError(
            "no token ends a completion: give the tokenizer an eos_token, or generation_config.json an eos_token_id"
        )
    return list(dict.fromkeys(ids))


def declare_ends(generation_config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the rule into a model's generation config, so that it also holds if the model is used alone."""
    ids = end_token_ids(tokenizer, generation_config)
    generation_config.eos_token_id = ids if len(ids) > 1 else ids[0]


def until_end(completion_ids: torch.Tensor, end_ids: Sequence[int]) -> list[torch.Tensor]:
    """Cut each sequence of a batch after its first end token, which is kept.

    Args:
        completion_ids: (B, L); tokens after an end are padding.
        end_ids: token ids from `end_token_ids`.
    """
    is_end = torch.isin(completion_ids, torch.tensor(end_ids, device=completion_ids.device))
    said = is_end.cumsum(1) - is_end.long() == 0
    return [ids[mask] for ids, mask in zip(completion_ids, said, strict=True)]
