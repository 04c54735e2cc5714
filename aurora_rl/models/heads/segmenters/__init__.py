"""Mask decoders by name, which are rebuilt from the plain config of a checkpoint."""

from typing import Any

import torch

from aurora_rl.models.heads.segmenters.base import FrameEncoder, Segmenter
from aurora_rl.models.heads.segmenters.dot import DotFrameEncoder, DotSegmenter
from aurora_rl.models.heads.segmenters.edgetam import EdgeTamFrameEncoder, EdgeTamSegmenter
from aurora_rl.models.heads.segmenters.sam import SamFrameEncoder, SamSegmenter
from aurora_rl.models.heads.segmenters.sam2 import Sam2FrameEncoder, Sam2Segmenter
from aurora_rl.models.heads.segmenters.sam3_tracker import Sam3TrackerFrameEncoder, Sam3TrackerSegmenter
from aurora_rl.models.heads.segmenters.sam_hq import SamHQFrameEncoder, SamHQSegmenter

SEGMENTERS: dict[str, type[Segmenter]] = {
    "dot": DotSegmenter,
    "edgetam": EdgeTamSegmenter,
    "sam": SamSegmenter,
    "sam2": Sam2Segmenter,
    "sam3_tracker": Sam3TrackerSegmenter,
    "sam_hq": SamHQSegmenter,
}
FRAME_ENCODERS: dict[str, type[FrameEncoder]] = {
    "dot": DotFrameEncoder,
    "edgetam": EdgeTamFrameEncoder,
    "sam": SamFrameEncoder,
    "sam2": Sam2FrameEncoder,
    "sam3_tracker": Sam3TrackerFrameEncoder,
    "sam_hq": SamHQFrameEncoder,
}


def build_segmenter(config: dict[str, Any]) -> Segmenter:
    """Build an untrained segmenter, for example of `{"type": "dot", "image_size": 64, "width": 32}`.

    Raises:
        ValueError: if the type is unknown.
    """
    return SEGMENTERS[_segmenter_type(config)](config)


def complete_segmenter_config(config: dict[str, Any]) -> dict[str, Any]:
    """Complete the config of a new segmenter by the fields of the checkpoint that it names.

    Raises:
        ValueError: if the type is unknown.
    """
    return SEGMENTERS[_segmenter_type(config)].complete_config(config)


def build_frame_encoder(config: dict[str, Any], *, dtype: torch.dtype = torch.float32) -> FrameEncoder:
    """Build the frozen frame encoder of the segmenter with this config.

    Args:
        config: the segmenter's config.
        dtype: dtype of the encoder and of its output.

    Raises:
        ValueError: if the type is unknown.
    """
    return FRAME_ENCODERS[_segmenter_type(config)](config, dtype=dtype)


def _segmenter_type(config: dict[str, Any]) -> str:
    name = config.get("type")
    if name not in SEGMENTERS:
        raise ValueError(f"unknown segmenter type {name!r}: choose one of {sorted(SEGMENTERS)}")
    return name


__all__ = [
    "FRAME_ENCODERS",
    "SEGMENTERS",
    "DotSegmenter",
    "FrameEncoder",
    "Segmenter",
    "build_frame_encoder",
    "build_segmenter",
    "complete_segmenter_config",
]
