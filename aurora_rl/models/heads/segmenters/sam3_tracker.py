"""The tracker of SAM 3 (Carion et al., 2025) as an image model: SAM 2's mask decoder on the features of SAM 3's ViT.

A checkpoint of the whole SAM 3, such as `facebook/sam3`, holds the tracker beside the detector, which is not loaded.
The frame's inputs are packed as SAM 2's; at S = 1008, the checkpoint's size, they take 10.6 MB a frame in float16.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

from torch import nn
from transformers import PretrainedConfig, Sam3TrackerConfig, Sam3TrackerModel
from transformers.models.sam3.image_processing_sam3 import Sam3ImageProcessor
from transformers.models.sam3_tracker.modeling_sam3_tracker import Sam3TrackerMaskDecoder

from aurora_rl.models.heads.segmenters.sam2 import Sam2FrameEncoder, Sam2Segmenter


class Sam3TrackerFrameEncoder(Sam2FrameEncoder):
    """Resizes frames of any aspect ratio to S x S, as SAM 3 was trained, and scales them to [-1, 1]."""

    kind = "sam3_tracker"
    title = "SAM 3"
    stride = size_multiple = 14
    sam_class = Sam3TrackerModel
    config_class = Sam3TrackerConfig

    @classmethod
    def load_config(cls, checkpoint: str, revision: str | None, **options: Any) -> PretrainedConfig:
        return tracker_part(super().load_config(checkpoint, revision, **options))

    @functools.cached_property
    def _image_processor(self) -> Sam3ImageProcessor:
        return Sam3ImageProcessor(size={"height": self.image_size, "width": self.image_size})

    def _at_image_size(self, encoder: nn.Module) -> nn.Module:
        """Place the patches of a layer with global attention in a grid of another size; no weight depends on it."""
        backbone: Any = encoder.get_submodule("vision_encoder.backbone")
        for layer in backbone.layers:
            config = copy.copy(layer.config)
            config.image_size = self.image_size
            layer.position_ids = layer.precompute_positions(config, layer.window_size)
        return encoder


class Sam3TrackerSegmenter(Sam2Segmenter):
    """SAM 3's mask decoder; mask logits have 4 pixels to a patch of 14, S/3.5 x S/3.5.

    Args:
        config: `{"type": "sam3_tracker", "image_size": 1008, "checkpoint": "facebook/sam3"}`, and the optional fields
            of `Sam2Segmenter`'s config. The image size S is a multiple of 14.

    Raises:
        ValueError: if S is not a multiple of 14.
    """

    frame_encoder = Sam3TrackerFrameEncoder
    decoder_class = Sam3TrackerMaskDecoder


def tracker_part(config: PretrainedConfig) -> PretrainedConfig:
    """Return the tracker's config: of the whole SAM 3's a part, by itself as it is."""
    part: dict[str, Any] | PretrainedConfig | None = getattr(config, "tracker_config", None)
    if part is None:
        return config
    fields = part if isinstance(part, dict) else part.to_dict()
    return type(config)(**copy.deepcopy(fields))
