"""EdgeTAM (Zhou et al., 2025) as an image model: SAM 2's mask decoder on RepViT, an image encoder for phones.

The frame's inputs are packed as SAM 2's and take as much memory. The image encoder comes from the library timm, which
only a run that encodes frames needs: one whose clips are cached loads neither.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

from transformers import EdgeTamConfig, EdgeTamModel, PretrainedConfig, PreTrainedModel, TimmWrapperConfig
from transformers.models.edgetam.configuration_edgetam import EdgeTamVisionConfig
from transformers.models.edgetam.modeling_edgetam import EdgeTamMaskDecoder

from aurora_rl.models.heads.segmenters.sam2 import Sam2FrameEncoder, Sam2Segmenter

#: What transformers' default backbone, RepViT-M1, is built with: maps of 1/4, 1/8, 1/16 and 1/32 of the frame.
BACKBONE_ARGS = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}


class EdgeTamFrameEncoder(Sam2FrameEncoder):
    """Resizes frames of any aspect ratio to S x S, as EdgeTAM was trained, and normalises them."""

    kind = "edgetam"
    title = "EdgeTAM"
    sam_class = EdgeTamModel
    config_class = EdgeTamConfig

    @classmethod
    def load_config(cls, checkpoint: str, revision: str | None, **options: Any) -> PretrainedConfig:
        with default_backbone_without_hub():
            return super().load_config(checkpoint, revision, **options)

    @classmethod
    def load_sam(cls, checkpoint: str, revision: str | None, **options: Any) -> PreTrainedModel:
        check_timm(checkpoint)
        with default_backbone_without_hub():
            return super().load_sam(checkpoint, revision, **options)


class EdgeTamSegmenter(Sam2Segmenter):
    """EdgeTAM's mask decoder.

    Args:
        config: `{"type": "edgetam", "image_size": 1024, "checkpoint": "yonigozlan/EdgeTAM-hf"}`, and the optional
            fields of `Sam2Segmenter`'s config. The image size S is a multiple of 32.

    Raises:
        ValueError: if S is not a multiple of 32.
    """

    frame_encoder = EdgeTamFrameEncoder
    decoder_class = EdgeTamMaskDecoder


def check_timm(checkpoint: str) -> None:
    """Raise an ImportError that says what to install where timm is missing."""
    if importlib.util.find_spec("timm") is None:
        raise ImportError(
            f"the image encoder of EdgeTAM checkpoint {checkpoint!r} is made by timm, which is not installed: "
            "pip install 'aurora-rl[edgetam]'"
        )


@contextlib.contextmanager
def default_backbone_without_hub() -> Iterator[None]:
    """Build a default config of EdgeTAM's image encoder without asking the hub for that of its backbone.

    transformers 5.17 builds a default one whenever a config of EdgeTAM is checked, printed or saved: without the
    network no checkpoint would load.
    """
    ask_hub = EdgeTamVisionConfig.__post_init__

    def fill_in(self: EdgeTamVisionConfig, **fields: Any) -> None:
        if self.backbone_config is None:
            self.backbone_config = TimmWrapperConfig(architecture="repvit_m1", model_args=dict(BACKBONE_ARGS))
        ask_hub(self, **fields)

    EdgeTamVisionConfig.__post_init__ = fill_in
    try:
        yield
    finally:
        EdgeTamVisionConfig.__post_init__ = ask_hub
