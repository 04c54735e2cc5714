"""SAM-HQ (Ke et al., 2023): SAM with one more output token, which reads features of 1/4 of the frame's size.

SAM-HQ adds two maps of the frame to what its decoder has upscaled: its own upscaling of the image embedding, and one of
the first layer with global attention in the image encoder. Neither depends on the prompt, so both convolutions stay in
the frozen half, and their sum is cached with the image embedding: three times SAM's memory, 6.3 MB a frame in float16
at S = 1024, for image encoders of any width. With the layer itself it would be 8.4 MB with ViT-B, 12.6 MB with ViT-H.

What is upscaled is the image as the decoder's transformer leaves it, as in the authors' code. transformers 5.17
upscales the image that went in, rows and columns exchanged: the masks of its `SamHQModel` are others.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SamHQConfig, SamHQModel
from transformers.models.sam_hq.modeling_sam_hq import SamHQMaskDecoder

from aurora_rl.models.heads.segmenters.sam import SamFrameEncoder, SamSegmenter, resize_vision_encoder
from aurora_rl.models.heads.segmenters.sam_shared import decode_prompts

#: Side of a cell of the image embedding, in pixels of the mask logits.
CELL = 4


class SamHQImageFeatures(nn.Module):
    """The part of SAM-HQ that runs before the prompt is known."""

    def __init__(self, sam: SamHQModel) -> None:
        super().__init__()
        decoder = sam.mask_decoder
        self.vision_encoder = sam.vision_encoder
        self.from_embedding = nn.Sequential(
            decoder.encoder_conv1, decoder.encoder_norm, decoder.activation, decoder.encoder_conv2
        )
        self.from_layer = nn.Sequential(
            decoder.compress_vit_conv1, decoder.compress_vit_norm, decoder.activation, decoder.compress_vit_conv2
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode (N, 3, S, S) into (N, 3 C, S/16, S/16)."""
        output = self.vision_encoder(pixel_values)
        layer = output.intermediate_embeddings[0].permute(0, 3, 1, 2)  # (N, D, S/16, S/16)
        hq_features = self.from_embedding(output.last_hidden_state) + self.from_layer(layer)  # (N, C/8, S/4, S/4)
        return torch.cat([output.last_hidden_state, F.pixel_unshuffle(hq_features, CELL)], dim=1)


class SamHQFrameEncoder(SamFrameEncoder):
    """Resizes and pads frames as SAM does."""

    kind = "sam_hq"
    sam_class = SamHQModel
    config_class = SamHQConfig

    @staticmethod
    def frozen_part(sam: SamHQModel) -> SamHQImageFeatures:
        return SamHQImageFeatures(sam)

    @functools.cached_property
    def frame_shape(self) -> tuple[int, ...]:
        channels, *grid = super().frame_shape
        return (3 * channels, *grid)

    def _at_image_size(self, encoder: nn.Module) -> nn.Module:
        encoder.vision_encoder = resize_vision_encoder(encoder.vision_encoder, self.image_size)
        return encoder

    def _encode_pixels(self, pixel_values: Tensor) -> Tensor:
        return self.vision_encoder(pixel_values)


class SamHQSegmenter(SamSegmenter):
    """SAM-HQ's mask decoder; as by default in the authors' code, its mask is the sum of SAM's and of the new token's.

    Args:
        config: `{"type": "sam_hq", "image_size": 1024, "checkpoint": "syscv-community/sam-hq-vit-huge"}`, and the
            optional fields of `SamSegmenter`'s config.

    Raises:
        ValueError: if S is not a multiple of the patch size.
    """

    frame_encoder = SamHQFrameEncoder
    decoder_class = SamHQMaskDecoder
    copies_with_gradients = 40
    copies_without_gradients = 17

    @staticmethod
    def single_mask(decoder: SamHQMaskDecoder) -> SamHQMaskDecoder:
        """Remove, too, the convolutions that `SamHQImageFeatures` holds."""
        SamSegmenter.single_mask(decoder)
        for name in ("compress_vit_conv1", "compress_vit_norm", "compress_vit_conv2"):
            setattr(decoder, name, nn.Identity())
        for name in ("encoder_conv1", "encoder_norm", "encoder_conv2"):
            setattr(decoder, name, nn.Identity())
        return decoder

    def decode(self, frame_inputs: Tensor, prompts: Tensor) -> Tensor:
        """Run SAM-HQ's mask decoder on N frames with G prompts each."""
        image_embeddings, hq_features = frame_inputs.tensor_split([self.prompt_dim], dim=1)
        return decode_prompts(
            self.mask_decoder,
            image_embeddings + self.no_mask_embed.to(frame_inputs),
            self.image_positional_embeddings.to(frame_inputs),
            prompts,
            hq_features=F.pixel_shuffle(hq_features, CELL),
        )
