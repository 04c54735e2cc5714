"""Segment Anything (Kirillov et al., 2023): the image encoder is frozen, the mask decoder is trained.

For image sizes other than the checkpoint's, the encoder's positional embeddings are interpolated when it is loaded.
"""

from __future__ import annotations

import copy
import functools
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel, SamConfig, SamImageProcessor, SamModel
from transformers.models.sam.modeling_sam import SamMaskDecoder, SamVisionEncoder
from transformers.models.sam_hq.modeling_sam_hq import SamHQVisionEncoder

from aurora_rl.models.heads.segmenters.base import resize_masks
from aurora_rl.models.heads.segmenters.sam_family import SamFamilyFrameEncoder, SamFamilySegmenter
from aurora_rl.models.heads.segmenters.sam_shared import decode_prompts

AnyVisionEncoder = TypeVar("AnyVisionEncoder", SamVisionEncoder, SamHQVisionEncoder)


class SamFrameEncoder(SamFamilyFrameEncoder):
    """Resizes frames to a longest edge of S, normalises them and pads them at the bottom and right to S x S."""

    kind = "sam"
    sam_class = SamModel
    config_class = SamConfig

    @classmethod
    def native_image_size(cls, sam_config: PretrainedConfig) -> int:
        return int(sam_config.vision_config.image_size)

    @staticmethod
    def frozen_part(sam: PreTrainedModel) -> nn.Module:
        return sam.vision_encoder

    @classmethod
    def frame_extent(cls, size: tuple[int, int], image_size: int) -> tuple[float, float]:
        height, width = resized_frame_size(size, image_size)
        return height / image_size, width / image_size

    @functools.cached_property
    def frame_shape(self) -> tuple[int, ...]:
        vision_config = self.read_part(self.config, "vision_config")
        grid = _grid_size(self.image_size, vision_config.patch_size)
        return (vision_config.output_channels, grid, grid)

    @functools.cached_property
    def _image_processor(self) -> SamImageProcessor:
        square = {"height": self.image_size, "width": self.image_size}
        return SamImageProcessor(size={"longest_edge": self.image_size}, pad_size=square)

    def _at_image_size(self, encoder: SamVisionEncoder) -> SamVisionEncoder:
        return resize_vision_encoder(encoder, self.image_size)

    def _encode_pixels(self, pixel_values: Tensor) -> Tensor:
        return self.vision_encoder(pixel_values).last_hidden_state


class SamSegmenter(SamFamilySegmenter):
    """SAM's mask decoder.

    Args:
        config: `{"type": "sam", "image_size": 1024, "checkpoint": "facebook/sam-vit-huge"}` is enough for a
            published SAM, whose decoders are all alike: C = 256. Optional are `revision` (branch, tag or commit on
            the hub), `sam_config` (the fields that differ from `SamConfig`'s defaults) and `encoder_hash` (hash of the
            image encoder's weights; `load_pretrained` adds it). The image size S is a multiple of the patch size; mask
            logits are S/4 x S/4.

    Raises:
        ValueError: if S is not a multiple of the patch size.
    """

    frame_encoder = SamFrameEncoder
    decoder_class = SamMaskDecoder
    config_parts = ("vision_config", "mask_decoder_config")

    def decode(self, frame_inputs: Tensor, prompts: Tensor) -> Tensor:
        """Run SAM's mask decoder on N image embeddings with G prompts each."""
        image_embeddings = frame_inputs + self.no_mask_embed.to(frame_inputs)
        positions = self.image_positional_embeddings.to(frame_inputs)
        return decode_prompts(self.mask_decoder, image_embeddings, positions, prompts)

    def postprocess(self, mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
        return unpadded_masks(mask_logits, size, self.config["image_size"])


def unpadded_masks(mask_logits: Tensor, size: tuple[int, int], image_size: int) -> Tensor:
    """Enlarge to S x S, crop the padding, resize to the frame, as `SamImageProcessor.post_process_masks` does.

    Args:
        mask_logits: (..., h, w) from SAM's mask decoder.
        size: (H, W) of the frame in pixels.
        image_size: S in pixels.

    Returns:
        Mask logits (..., H, W) float32.
    """
    mask_logits = resize_masks(mask_logits.float(), (image_size, image_size))
    height, width = resized_frame_size(size, image_size)
    return resize_masks(mask_logits[..., :height, :width], size)


def resize_vision_encoder(encoder: AnyVisionEncoder, image_size: int) -> AnyVisionEncoder:
    """Adapt the image encoder of SAM, or of SAM-HQ, to another image size.

    Absolute positional embeddings are interpolated bicubically, relative ones of the layers with global attention
    linearly. Layers with windowed attention keep theirs, since a window holds as many patches as before.

    Args:
        encoder: an image encoder; returned unchanged if it has this size.
        image_size: S in pixels, a multiple of the patch size.

    Raises:
        ValueError: if S is not a multiple of the patch size.
    """
    if image_size == encoder.config.image_size:
        return encoder
    config = copy.deepcopy(encoder.config)
    config.image_size = image_size
    grid = _grid_size(image_size, config.patch_size)
    weights = encoder.state_dict()
    if "pos_embed" in weights:
        weights["pos_embed"] = _resize_absolute_positions(weights["pos_embed"], grid)
    for layer in config.global_attn_indexes if config.use_rel_pos else ():
        for axis in ("h", "w"):
            name = f"layers.{layer}.attn.rel_pos_{axis}"
            weights[name] = _resize_relative_positions(weights[name], grid)
    with torch.device("meta"):
        resized = type(encoder)(config)
    resized.load_state_dict(weights, assign=True)
    return resized


def resized_frame_size(size: tuple[int, int], image_size: int) -> tuple[int, int]:
    """Return (H, W) in pixels of a frame resized to a longest edge of `image_size`, before padding."""
    scale = image_size / max(size)
    height, width = (int(side * scale + 0.5) for side in size)
    return height, width


def _grid_size(image_size: int, patch_size: int) -> int:
    if image_size % patch_size:
        raise ValueError(f"image_size {image_size} must be a multiple of SAM's patch size {patch_size}")
    return image_size // patch_size


def _resize_absolute_positions(pos_embed: Tensor, grid: int) -> Tensor:
    """Interpolate (1, h, w, D) to (1, grid, grid, D)."""
    channels_first = pos_embed.permute(0, 3, 1, 2)
    resized = F.interpolate(channels_first, size=(grid, grid), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).contiguous()


def _resize_relative_positions(rel_pos: Tensor, grid: int) -> Tensor:
    """Interpolate (2 h - 1, head_dim) to (2 grid - 1, head_dim); the middle row stays the offset 0."""
    resized = F.interpolate(rel_pos.T[None], size=2 * grid - 1, mode="linear", align_corners=False)
    return resized[0].T.contiguous()
