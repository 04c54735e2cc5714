"""A tower's output, taken apart into clips and put together again for the rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from aurora_rl.models.tower_outputs import ClipOutput


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


def _flat(features: Any) -> torch.Tensor:
    """Return a tower's features (features, D), whichever form they have."""
    if isinstance(features, (list, tuple)):
        return torch.cat(list(features))
    return features.flatten(0, 1) if features.dim() == 3 else features


def _in_form_of(features: Any, flat: torch.Tensor) -> Any:
    if isinstance(features, (list, tuple)):
        return [flat]
    return flat[None] if features.dim() == 3 else flat
