"""SAM-HQ beside transformers' own model."""

import copy

import numpy as np
import pytest
import torch
from transformers import SamHQModel, SamImageProcessor

from aurora_rl.models.heads.segmenters import build_frame_encoder
from aurora_rl.models.heads.segmenters.sam_hq import SamHQSegmenter

SIZE, WIDTH, GRID = 128, 32, 8


@pytest.fixture(scope="module")
def stock(sam_hq_checkpoint) -> SamHQModel:
    """transformers' model as it is."""
    return SamHQModel.from_pretrained(sam_hq_checkpoint).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def sam(stock) -> SamHQModel:
    """transformers' model with SAM-HQ's own upscaling.

    SAM-HQ upscales the image as its transformer has left it. transformers 5.17 drops that, and upscales the image that
    went into the transformer, with rows and columns exchanged.
    """
    mended = copy.deepcopy(stock)
    images: list[torch.Tensor] = []
    decoder = mended.mask_decoder
    decoder.transformer.register_forward_hook(lambda module, args, output: images.append(output[1]))

    def as_the_transformer_left_it(module, args):
        left = images.pop()  # (N, G, h w, C)
        return left.flatten(0, 1).transpose(1, 2).unflatten(2, (GRID, GRID))

    decoder.upscale_conv1.register_forward_pre_hook(as_the_transformer_left_it)
    return mended


@pytest.fixture(scope="module")
def segmenter(sam_hq_checkpoint) -> SamHQSegmenter:
    return SamHQSegmenter.from_checkpoint(sam_hq_checkpoint)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 48, 80, 3), dtype=np.uint8)


def stock_masks(
    sam: SamHQModel, frames: np.ndarray, prompts: torch.Tensor, *, hq_token_only: bool = False
) -> torch.Tensor:
    """Masks (N, G, h, w) of transformers' own decoder under the same sparse embeddings."""
    processor = SamImageProcessor(size={"longest_edge": SIZE}, pad_size={"height": SIZE, "width": SIZE})
    pixel_values = processor(images=list(frames), return_tensors="pt")["pixel_values"].to(prompts.dtype)
    image_embeddings, intermediate_embeddings = sam.get_image_embeddings(pixel_values)
    positions = sam.get_image_wide_positional_embeddings()
    masks, _ = sam.mask_decoder(
        image_embeddings=image_embeddings,
        image_positional_embeddings=positions.expand(len(frames), -1, -1, -1),
        sparse_prompt_embeddings=prompts[:, :, None],
        dense_prompt_embeddings=sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(
            len(frames), -1, GRID, GRID
        ),
        multimask_output=False,
        hq_token_only=hq_token_only,
        intermediate_embeddings=intermediate_embeddings,
    )
    return masks[:, :, 0]


def test_masks_are_those_of_transformers_from_pixels_on(sam, segmenter, frames):
    prompts = torch.randn(3, 2, WIDTH, generator=torch.Generator().manual_seed(0))
    mask_logits = segmenter(build_frame_encoder(segmenter.config).encode(frames), prompts)
    assert mask_logits.shape == (3, 2, 4 * GRID, 4 * GRID)
    expected = stock_masks(sam, frames, prompts)
    torch.testing.assert_close(mask_logits, expected, rtol=1e-4, atol=1e-4)
    alone = stock_masks(sam, frames, prompts, hq_token_only=True)
    assert (expected - alone).abs().max() > 1e-2  # both tokens' masks are in the sum
    assert alone.std() > 1e-2


@pytest.mark.parametrize("num_prompts", [1, 3])
def test_gradients_are_those_of_transformers(sam, segmenter, frames, num_prompts):
    stock, own = copy.deepcopy(sam).double(), copy.deepcopy(segmenter).double()
    stock.mask_decoder.requires_grad_()
    prompts = torch.randn(3, num_prompts, WIDTH, generator=torch.Generator().manual_seed(0)).double()
    theirs, ours = prompts.clone().requires_grad_(), prompts.clone().requires_grad_()
    stock_masks(stock, frames, theirs).sigmoid().square().mean().backward()
    frame_inputs = build_frame_encoder(segmenter.config, dtype=torch.float64).encode(frames)
    own.decode(frame_inputs, ours).sigmoid().square().mean().backward()
    assert theirs.grad.abs().max() > 1e-6
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-8)  # softmax is taken in float32
    named = dict(stock.mask_decoder.named_parameters())
    for name, parameter in own.mask_decoder.named_parameters():
        torch.testing.assert_close(parameter.grad, named[name].grad, rtol=1e-4, atol=1e-8)


def test_transformers_upscales_the_image_that_went_into_the_transformer(stock, sam, frames):
    """If this fails, transformers has been mended, and the hooks of `sam` can go."""
    prompts = torch.randn(3, 1, WIDTH, generator=torch.Generator().manual_seed(0))
    upscaled: list[torch.Tensor] = []
    hook = stock.mask_decoder.upscale_conv1.register_forward_pre_hook(lambda module, args: upscaled.append(args[0]))
    found = stock_masks(stock, frames, prompts)
    hook.remove()
    processor = SamImageProcessor(size={"longest_edge": SIZE}, pad_size={"height": SIZE, "width": SIZE})
    pixel_values = processor(images=list(frames), return_tensors="pt")["pixel_values"]
    image_embeddings, _ = stock.get_image_embeddings(pixel_values)
    went_in = image_embeddings + stock.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    torch.testing.assert_close(upscaled[0], went_in.transpose(2, 3))
    assert (found - stock_masks(sam, frames, prompts)).abs().max() > 0.1
