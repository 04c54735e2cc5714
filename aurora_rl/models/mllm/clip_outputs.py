"""A tower's output, taken apart into clips and put together again for the rows of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutputWithPooling

from aurora_rl.models.tower_outputs import ClipOutput

#: Fields of a tower's output that its features may stand in.
FIELDS = ("pooler_output", "last_hidden_state")
#: Forms of the features, see `split`.
IN_LIST, FLAT, ONE_ROW, PADDED = "list", "flat", "one row", "padded"


@dataclasses.dataclass
class KeptOutput(BaseModelOutputWithPooling):
    """A tower's output as the model reads it, whichever class it had."""

    attention_mask: torch.Tensor | None = None
    deepstack_features: list[torch.Tensor] | None = None


def split(outputs: Any, field: str, sizes: Sequence[int], *, modality: str) -> list[ClipOutput]:
    """Split a tower's output into clips.

    Args:
        outputs: the output: its features as a list of tensors, flat (features, D), (1, features, D), or padded
            (clips, T, D) with an `attention_mask`, and perhaps `deepstack_features`.
        field: name of its features.
        sizes: number of each clip's placeholders.
        modality: what the tower reads.

    Raises:
        ValueError: if there are more or fewer features than placeholders.
    """
    features = getattr(outputs, field)
    if (mask := getattr(outputs, "attention_mask", None)) is not None:  # the model takes what counts
        return [ClipOutput(*part) for part in zip(features, [()] * len(features), mask, strict=True)]
    flat = _flat(features)
    if len(flat) != sum(sizes):
        raise ValueError(
            f"the batch's clips have {list(sizes)} {modality} placeholders, but the tower computed {len(flat)} "
            "features: check what the family's `encode` and `collate_features` give"
        )
    levels = [level.split(list(sizes)) for level in getattr(outputs, "deepstack_features", None) or ()]
    return [
        ClipOutput(part, tuple(level[clip] for level in levels)) for clip, part in enumerate(flat.split(list(sizes)))
    ]


def join(outputs: Any, field: str, parts: Sequence[ClipOutput]) -> Any:
    """Return a tower's output for some clips, in the order of `parts`; in the form of `outputs`, which are reused."""
    features = getattr(outputs, field)
    if getattr(outputs, "attention_mask", None) is not None:
        masks = [part.mask for part in parts if part.mask is not None]
        padded = [part.features for part in parts]
        outputs.attention_mask = pad_sequence(masks, batch_first=True) if parts else outputs.attention_mask[:0].clone()
        setattr(outputs, field, pad_sequence(padded, batch_first=True) if parts else features[:0].clone())
        return outputs
    whole = torch.cat([_flat(features)[:0], *(part.features for part in parts)])
    setattr(outputs, field, _in_form_of(features, whole))
    if getattr(outputs, "deepstack_features", None) is not None:
        outputs.deepstack_features = [
            torch.cat([level[:0], *(part.levels[number] for part in parts)])
            for number, level in enumerate(outputs.deepstack_features)
        ]
    return outputs


def of_no_clip(outputs: Any, field: str) -> Any:
    """Return a copy of a tower's output with what `join` reads, and without features."""
    form = type(outputs)()
    for name in (field, "attention_mask", "deepstack_features"):
        if (value := getattr(outputs, name, None)) is not None:
            setattr(form, name, value)
    return join(form, field, [])


def taken_apart(output: Any) -> tuple[ClipOutput, str, str]:
    """Take a tower's output for no clip apart, with the field that its features stand in, and their form."""
    field = next(name for name in FIELDS if getattr(output, name, None) is not None)
    features, mask = getattr(output, field), getattr(output, "attention_mask", None)
    levels = tuple(getattr(output, "deepstack_features", None) or ())
    if mask is not None:
        return ClipOutput(features, levels, mask), field, PADDED
    if isinstance(features, (list, tuple)):
        return ClipOutput(torch.cat(list(features)), levels), field, IN_LIST
    return ClipOutput(features.flatten(0, -2), levels), field, ONE_ROW if features.dim() == 3 else FLAT


def put_together(part: ClipOutput, field: str, form: str) -> KeptOutput:
    """Do the opposite of `taken_apart`."""
    output, features = KeptOutput(attention_mask=part.mask), part.features
    output.deepstack_features = list(part.levels) or None
    setattr(output, field, [features] if form == IN_LIST else features[None] if form == ONE_ROW else features)
    return output


def _flat(features: Any) -> torch.Tensor:
    """Return a tower's features (features, D), whichever form they have."""
    if isinstance(features, (list, tuple)):
        return torch.cat(list(features))
    return features.flatten(0, 1) if features.dim() == 3 else features


def _in_form_of(features: Any, flat: torch.Tensor) -> Any:
    if isinstance(features, (list, tuple)):
        return [flat]
    return flat[None] if features.dim() == 3 else flat
