"""`generate` reads each distinct prompt once, whatever the number of completions that are sampled from it.

The G rows of a group have the same prompt. Its pass through the decoder is run on one row for each distinct prompt, and
cache and logits are repeated for the others, inside the first forward pass that `generate` makes. All else is
`generate` as it is: the same number of passes over the same modules, which processes with shards of the weights rely
on, and the same draws of the sampling, one for each row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from aurora_rl.models.grounding import GroundingMixin, segmentation_model

#: Arguments that ask for outputs of every row beside the logits.
MORE_OUTPUTS = ("output_attentions", "output_hidden_states", "output_router_logits")


class SharedPrefill:
    """The first forward pass of `generate`, over one row for each distinct prompt.

    Args:
        model: the model, whose rows have `media_index`, see `grounding.shared_media`.

    Attributes:
        prompt_of_row: (B,) place of each row's prompt among the distinct ones; None until they are read, and if every
            row is read by itself.
    """

    def __init__(self, model: GroundingMixin) -> None:
        self.prompt_of_row: torch.Tensor | None = None
        self._model = model
        self._clips: list[int] | None = None  # `media_index` of all rows, while the pass runs

    def select(self, _model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Leave one row of each distinct prompt, before a forward pass over prompts."""
        prompts = self._prompts(kwargs)
        if prompts is None or len(set(prompts)) == len(prompts):
            return None
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        first_rows = [prompts.index(prompt) for prompt in places]
        device = kwargs["input_ids"].device
        self.prompt_of_row = torch.tensor([places[prompt] for prompt in prompts], device=device)
        self._clips = self._model.media_index
        assert self._clips is not None
        self._model.media_index = [self._clips[row] for row in first_rows]
        kept = torch.tensor(first_rows, device=device)
        size = kwargs["input_ids"].shape
        of_rows = {name: value for name, value in kwargs.items() if _is_of_rows(name, value, size)}
        return args, {**kwargs, **{name: value.index_select(-2, kept) for name, value in of_rows.items()}}

    def _prompts(self, kwargs: dict[str, Any]) -> list[Any] | None:
        """Return what each row reads, to be compared; None if this is not a pass over prompts that can be shared."""
        cache: Any = kwargs.get("past_key_values")
        ids, mask, clips = kwargs.get("input_ids"), kwargs.get("attention_mask"), self._model.media_index
        if type(cache) is not DynamicCache or cache.offloading or cache.get_seq_length() > 0:
            return None
        if ids is None or mask is None or mask.shape != ids.shape or clips is None or len(clips) != len(ids):
            return None
        if any(kwargs.get(name) for name in MORE_OUTPUTS):
            return None
        return [(clip, *row) for clip, row in zip(clips, torch.cat([ids, mask], dim=1).tolist(), strict=True)]

    def repeat(self, _model: nn.Module, _args: Any, outputs: Any) -> None:
        """Give every row its prompt's logits and cache, after that pass."""
        if self._clips is None or self.prompt_of_row is None:
            return
        self._model.media_index, self._clips = self._clips, None
        outputs.logits = outputs.logits[self.prompt_of_row]
        outputs.past_key_values.reorder_cache(self.prompt_of_row)  # beam search needs it of every kind of layer


def _is_of_rows(name: str, value: Any, size: torch.Size) -> bool:
    """Tell whether an argument of the forward pass is (..., B, L), such as positions and types of the tokens.

    Media come once a clip; a size alone could be theirs by chance.
    """
    may_be = name == "attention_mask" or name.endswith("_ids")
    return may_be and isinstance(value, torch.Tensor) and value.shape[-2:] == size


@contextlib.contextmanager
def prefill_once(model: nn.Module) -> Iterator[SharedPrefill]:
    """Let `generate` read each distinct prompt once while the block runs, where it samples by a `DynamicCache`.

    Layers of full and linear attention and of sliding windows can all repeat what they keep. With another kind of
    cache, or where attentions or states are asked for as well, each row is read by itself.

    Args:
        model: the model, wrapped or not, inside `grounding.shared_media`.
    """
    inner = segmentation_model(model)
    prefill = SharedPrefill(inner)
    handles = (
        inner.register_forward_pre_hook(prefill.select, with_kwargs=True),
        inner.register_forward_hook(prefill.repeat),
    )
    try:
        yield prefill
    finally:
        for handle in handles:
            handle.remove()
