"""Heads turn the hidden state at a token of their own into a prediction on every frame of a clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aurora_rl.models.heads.base import FrameBatch, Head, HeadLoss
from aurora_rl.models.heads.boxes import BoxHead
from aurora_rl.models.heads.masks import MaskHead

HEADS: dict[str, type[Head]] = {"masks": MaskHead, "boxes": BoxHead}

#: Attribute of the model that holds the mask head; checkpoints name its weights so. Others are `<name>_head`.
MASK_HEAD = "seg_head"


def build_head(name: str, hidden_size: int, config: dict[str, Any]) -> Head:
    """Build an untrained head; raises a ValueError if there is none of this name."""
    return head_class(name)(hidden_size, config)


def head_class(name: str) -> type[Head]:
    """Return the class of a head; raises a ValueError if there is none of this name."""
    if name not in HEADS:
        raise ValueError(f"unknown head {name!r}: choose one of {sorted(HEADS)}")
    return HEADS[name]


def head_attribute(name: str) -> str:
    """Return the attribute of a model that holds a head."""
    return MASK_HEAD if name == MaskHead.name else f"{name}_head"


def head_configs(fields: Any) -> dict[str, dict[str, Any]]:
    """Return the config of each head, by name, that a checkpoint's config or an adapter's describes.

    Args:
        fields: object or dictionary with `segmenter`, the mask head's config, and `heads`, those of all others.
    """
    get = fields.get if isinstance(fields, Mapping) else lambda key: getattr(fields, key, None)
    masks = get("segmenter")
    return ({MaskHead.name: masks} if masks else {}) | (get("heads") or {})


def head_fields(configs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the fields `segmenter` and `heads` that hold these configs, None where there are none."""
    others = {name: config for name, config in configs.items() if name != MaskHead.name}
    return {"segmenter": configs.get(MaskHead.name), "heads": others or None}


__all__ = [
    "HEADS",
    "BoxHead",
    "FrameBatch",
    "Head",
    "HeadLoss",
    "MaskHead",
    "build_head",
    "head_attribute",
    "head_class",
    "head_configs",
    "head_fields",
]
