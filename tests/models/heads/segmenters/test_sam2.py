"""SAM 2, and those whose decoders are its copies, beside transformers' own models."""

import copy

import numpy as np
import pytest
import torch
from transformers import (
    BaseImageProcessor,
    EdgeTamModel,
    PreTrainedModel,
    Sam2ImageProcessor,
    Sam2Model,
    Sam3TrackerModel,
    Sam3TrackerVideoModel,
)
from transformers.models.sam3.image_processing_sam3 import Sam3ImageProcessor

from aurora_rl.models.heads import FrameBatch, MaskHead
from aurora_rl.models.heads.base import run_head
from aurora_rl.models.heads.segmenters import SEGMENTERS, build_frame_encoder, build_segmenter
from aurora_rl.models.heads.segmenters.edgetam import EdgeTamFrameEncoder
from aurora_rl.models.heads.segmenters.sam2 import Sam2Segmenter, pack_features, unpack_features

GRID, WIDTH = 4, 128


@pytest.fixture(scope="module", params=["edgetam", "sam2", "sam3_tracker"])
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def checkpoint(kind, request) -> str:
    return request.getfixturevalue(f"{kind.removesuffix('_tracker')}_checkpoint")


@pytest.fixture(scope="module")
def sam(kind, checkpoint) -> PreTrainedModel:
    """transformers' model; of SAM 3 that of videos, since its image model leaves out one embedding, see below."""
    if kind == "edgetam":
        sam = EdgeTamFrameEncoder.load_sam(checkpoint, None)
        assert isinstance(sam, EdgeTamModel)
    else:
        sam = (Sam2Model if kind == "sam2" else Sam3TrackerVideoModel).from_pretrained(checkpoint)
    return sam.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def loaded(kind, checkpoint) -> Sam2Segmenter:
    segmenter_class = SEGMENTERS[kind]
    assert issubclass(segmenter_class, Sam2Segmenter)
    return segmenter_class.from_checkpoint(checkpoint)


@pytest.fixture
def segmenter(loaded) -> Sam2Segmenter:
    """A copy, which a test may change."""
    return copy.deepcopy(loaded)


def image_processor(kind: str, size: int) -> BaseImageProcessor:
    processor_class = Sam3ImageProcessor if kind == "sam3_tracker" else Sam2ImageProcessor
    return processor_class(size={"height": size, "width": size})


def make_inputs(num_frames: int, num_prompts: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    frame_inputs = torch.randn(num_frames, 4 * WIDTH, GRID, GRID, generator=generator)
    prompts = torch.randn(num_frames, num_prompts, WIDTH, generator=generator)
    return frame_inputs, prompts


def make_frames(num_frames: int = 2, height: int = 48, width: int = 80) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


# The layout of a frame's inputs


def test_three_maps_come_back_as_they_were_packed():
    maps = [torch.randn(2, 4, 16, 16), torch.randn(2, 8, 8, 8), torch.randn(2, 32, 4, 4)]
    packed = pack_features(maps)
    assert packed.shape == (2, 128, 4, 4)
    for found, expected in zip(unpack_features(packed), maps, strict=True):
        assert torch.equal(found, expected)


def test_published_sizes_take_eight_megabytes_a_frame():
    with torch.device("meta"):
        segmenter = build_segmenter({"type": "sam2", "image_size": 1024, "checkpoint": "facebook/sam2.1-hiera-large"})
    assert segmenter.prompt_dim == 256
    assert segmenter.frame_shape == (1024, 64, 64)
    assert 2 * np.prod(segmenter.frame_shape) == 8_388_608


# The mask decoder


def stock_masks(
    sam: PreTrainedModel, features: list[torch.Tensor], positions: torch.Tensor, prompts: torch.Tensor
) -> torch.Tensor:
    """transformers' own decoder under the same sparse embedding, (N, G, h, w)."""
    num_frames = len(prompts)
    sam.mask_decoder.dynamic_multimask_via_stability = False  # it would take masks that are not trained here
    dense = sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(num_frames, -1, GRID, GRID)
    low_res_masks, *_ = sam.mask_decoder(
        image_embeddings=features[-1],
        image_positional_embeddings=positions.expand(num_frames, -1, -1, -1),
        sparse_prompt_embeddings=prompts[:, :, None],
        dense_prompt_embeddings=dense,
        multimask_output=False,
        high_resolution_features=features[:-1],
    )
    return low_res_masks[:, :, 0]


def test_masks_are_those_of_transformers_from_pixels_on(kind, sam, segmenter):
    frames = make_frames(3)
    processor = image_processor(kind, segmenter.config["image_size"])
    pixel_values = processor(images=list(frames), return_tensors="pt")["pixel_values"]
    _, prompts = make_inputs(3, 2)
    frame_inputs = build_frame_encoder(segmenter.config).encode(frames)
    mask_logits = segmenter(frame_inputs, prompts)
    assert mask_logits.shape == (3, 2, 4 * GRID, 4 * GRID)
    positions = sam.get_image_wide_positional_embeddings()
    expected = stock_masks(sam, sam.get_image_embeddings(pixel_values), positions, prompts)
    torch.testing.assert_close(mask_logits, expected, rtol=1e-4, atol=1e-4)
    assert mask_logits.std() > 0.1  # there is something to compare


def test_sam_3_of_images_in_transformers_adds_an_embedding_where_nobody_reads_it(sam3_checkpoint):
    """SAM 3 has a fourth map, for its detector, and transformers 5.17 takes that for the last one of its tracker."""
    pixel_values = torch.randn(1, 3, 56, 56)
    image, video = (
        model.from_pretrained(sam3_checkpoint).eval() for model in (Sam3TrackerModel, Sam3TrackerVideoModel)
    )
    *_, theirs = image.get_image_embeddings(pixel_values)
    *_, coarse = video.get_image_embeddings(pixel_values)
    embedding = video.no_memory_embedding.reshape(1, -1, 1, 1)
    assert embedding.abs().max() > 0.1
    torch.testing.assert_close(theirs + embedding, coarse)


def test_image_positions_are_transformers_own(sam, segmenter):
    positions = sam.get_image_wide_positional_embeddings()
    torch.testing.assert_close(segmenter.image_positional_embeddings, positions)


@pytest.mark.parametrize("num_prompts", [1, 3])
def test_gradients_are_those_of_transformers(sam, segmenter, num_prompts):
    stock = copy.deepcopy(sam).double()
    stock.mask_decoder.requires_grad_()
    frame_inputs, prompts = make_inputs(2, num_prompts)
    features = [feature.double() for feature in unpack_features(frame_inputs)]
    leaf = prompts.double().requires_grad_()
    positions = segmenter.double().image_positional_embeddings
    stock_masks(stock, features, positions, leaf).sigmoid().square().mean().backward()
    own_leaf = prompts.double().requires_grad_()
    segmenter.decode(frame_inputs.double(), own_leaf).sigmoid().square().mean().backward()
    assert leaf.grad.abs().max() > 1e-6
    torch.testing.assert_close(own_leaf.grad, leaf.grad, rtol=1e-4, atol=1e-8)  # softmax is taken in float32
    theirs = dict(stock.mask_decoder.named_parameters())
    for name, parameter in segmenter.mask_decoder.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-8)


def test_rows_on_one_clip_are_decoded_as_rows_on_copies_of_it(segmenter):
    head = MaskHead(16, segmenter.config)
    states, clips = torch.randn(3, 16), torch.randn(5, 4 * WIDTH, GRID, GRID)  # of 2 and 3 frames
    shared = run_head(head, states, FrameBatch(clips, torch.tensor([2, 3]), torch.tensor([0, 1, 0])))["mask_logits"]
    copies = torch.cat([clips[:2], clips[2:], clips[:2]])
    alone = run_head(head, states, FrameBatch(copies, torch.tensor([2, 3, 2]), torch.tensor([0, 1, 2])))["mask_logits"]
    assert shared.shape == (7, 4 * GRID, 4 * GRID)
    torch.testing.assert_close(shared, alone)


@pytest.mark.parametrize("size", [(48, 80), (81, 37), (64, 64), (300, 511)])
def test_postprocess_equals_the_image_processors(segmenter, size):
    mask_logits = torch.randn(2, 3, 16, 16)
    expected = image_processor(segmenter.config["type"], 64).post_process_masks(
        mask_logits[:, None], [size] * 2, binarize=False
    )
    torch.testing.assert_close(segmenter.postprocess(mask_logits, size), torch.cat(expected))
