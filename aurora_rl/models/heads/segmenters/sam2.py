"""SAM 2 (Ravi et al., 2024) as an image model: Hiera and its feature pyramid are frozen, the mask decoder is trained.

The decoder reads three maps of a frame: the image embedding at 1/16 of its size and features at 1/4 and 1/8. They are
the result of `Sam2Model.get_image_embeddings`, packed into one tensor (`pack_features`), so that they are cached,
batched and checked like SAM's single map. They take four times its memory, 8.4 MB a frame in float16 at S = 1024.

Other image sizes need no other weights, since Hiera interpolates its positional embeddings to its input.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    BaseImageProcessor,
    PretrainedConfig,
    PreTrainedModel,
    Sam2Config,
    Sam2ImageProcessor,
    Sam2Model,
)
from transformers.models.sam2.modeling_sam2 import Sam2MaskDecoder

from aurora_rl.models.heads.segmenters.sam_family import SamFamilyFrameEncoder, SamFamilySegmenter
from aurora_rl.models.heads.segmenters.sam_shared import Sam2Like, decode_prompts


class Sam2ImageFeatures(nn.Module):
    """The part of SAM 2, SAM 3's tracker or EdgeTAM that runs before the prompt is known.

    The decoder's projections of the two finer maps are in this frozen part, since the maps before the projections are
    eight and four times as large.
    """

    def __init__(self, sam: PreTrainedModel) -> None:
        super().__init__()
        self.vision_encoder = sam.vision_encoder
        self.conv_s0, self.conv_s1 = sam.mask_decoder.conv_s0, sam.mask_decoder.conv_s1
        self.no_memory_embedding: Tensor
        self.register_buffer("no_memory_embedding", sam.no_memory_embedding.detach().clone().reshape(1, -1, 1, 1))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode (N, 3, S, S) into (N, 4 C, g, g), g cells of `stride` pixels a side."""
        # SAM 3 has a fourth map, coarser still, for its detector alone. transformers' image model of its tracker takes
        # that one for the last, and adds the embedding to it, where the video model and SAM 3's own code do as here.
        finest, finer, coarse = self.vision_encoder(pixel_values).fpn_hidden_states[:3]
        return pack_features([self.conv_s0(finest), self.conv_s1(finer), coarse + self.no_memory_embedding])


class Sam2FrameEncoder(SamFamilyFrameEncoder):
    """Resizes frames of any aspect ratio to S x S, as SAM 2 was trained, and normalises them."""

    kind = "sam2"
    #: Name in errors.
    title: ClassVar[str] = "SAM 2"
    #: Side of an image embedding's cell in pixels of the frame: Hiera's patches of 4 pixels, halved twice.
    stride: ClassVar[int] = 16
    #: The image size is a multiple of this, the side of the cells of Hiera's deepest map and of its position windows.
    size_multiple: ClassVar[int] = 32
    sam_class = Sam2Model
    config_class = Sam2Config

    @classmethod
    def native_image_size(cls, sam_config: PretrainedConfig) -> int:
        height, _ = sam_config.vision_config.backbone_feature_sizes[-1]
        return int(height * cls.stride)

    @staticmethod
    def frozen_part(sam: PreTrainedModel) -> Sam2ImageFeatures:
        return Sam2ImageFeatures(sam)

    @functools.cached_property
    def frame_shape(self) -> tuple[int, ...]:
        if self.image_size % self.size_multiple:
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of {self.size_multiple} for {self.title}"
            )
        grid = self.image_size // self.stride
        return (4 * self.read_part(self.config, "mask_decoder_config").hidden_size, grid, grid)

    @functools.cached_property
    def _image_processor(self) -> BaseImageProcessor:
        return Sam2ImageProcessor(size={"height": self.image_size, "width": self.image_size})

    def _at_image_size(self, encoder: nn.Module) -> nn.Module:
        return encoder

    def _encode_pixels(self, pixel_values: Tensor) -> Tensor:
        return self.vision_encoder(pixel_values)


class Sam2Segmenter(SamFamilySegmenter):
    """SAM 2's mask decoder; mask logits are S/4 x S/4 and resized to the frame's aspect ratio.

    The mask is always that of token 0. transformers' decoder uses the others in evaluation where that mask is unstable,
    but they are not trained here.

    Args:
        config: `{"type": "sam2", "image_size": 1024, "checkpoint": "facebook/sam2.1-hiera-large"}` is enough for a
            published SAM 2, whose decoders are all alike: C = 256. Optional are `revision` (branch, tag or commit on
            the hub), `sam_config` (the fields that differ from `Sam2Config`'s defaults) and `encoder_hash` (hash of the
            frozen weights; `load_pretrained` adds it). The image size S is a multiple of 32.

    Raises:
        ValueError: if S is not a multiple of 32.
    """

    frame_encoder = Sam2FrameEncoder
    decoder_class = Sam2MaskDecoder

    @staticmethod
    def single_mask(decoder: Sam2Like) -> Sam2Like:
        """Remove, too, the score of the object's presence and the projections that `Sam2ImageFeatures` holds."""
        SamFamilySegmenter.single_mask(decoder)
        decoder.pred_obj_score_head = nn.Identity()
        decoder.conv_s0, decoder.conv_s1 = nn.Identity(), nn.Identity()
        return decoder

    def decode(self, frame_inputs: Tensor, prompts: Tensor) -> Tensor:
        """Run SAM 2's mask decoder on N frames with G prompts each."""
        finest, finer, image_embeddings = unpack_features(frame_inputs)
        return decode_prompts(
            self.mask_decoder,
            image_embeddings + self.no_mask_embed.to(frame_inputs),
            self.image_positional_embeddings.to(frame_inputs),
            prompts,
            high_res_features=(finest, finer),
        )


def pack_features(features: Sequence[Tensor]) -> Tensor:
    """Pack (N, C/8, 4 g, 4 g), (N, C/4, 2 g, 2 g) and (N, C, g, g) one after the other into (N, 4 C, g, g).

    The numbers of each map stay in their order, row by row, so a cell of the result is no place in the image.
    """
    num_frames, _, *grid = features[-1].shape
    return torch.cat([feature.reshape(num_frames, -1, *grid) for feature in features], dim=1)


def unpack_features(frame_inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three maps that `pack_features` has packed."""
    num_frames, width, height, _ = frame_inputs.shape
    channels = width // 4
    finest, finer, coarse = frame_inputs.split([2 * channels, channels, channels], dim=1)
    return (
        finest.reshape(num_frames, channels // 8, 4 * height, 4 * height),
        finer.reshape(num_frames, channels // 4, 2 * height, 2 * height),
        coarse,
    )
