import numpy as np
import pytest
import torch
from transformers import Sam2ImageProcessor, Sam2Model

from aurora_rl.caches.image_embeddings import EmbeddingCache
from aurora_rl.data.media import load_clip
from aurora_rl.models.heads import FrameBatch, MaskHead
from aurora_rl.models.heads.base import run_head
from aurora_rl.models.heads.segmenters import build_frame_encoder, build_segmenter, complete_segmenter_config
from aurora_rl.models.heads.segmenters.sam2 import Sam2Segmenter, pack_features, unpack_features
from aurora_rl.models.loading import load_model

SIZE, GRID, WIDTH = 64, 4, 128


@pytest.fixture(scope="module")
def sam(sam2_checkpoint) -> Sam2Model:
    return Sam2Model.from_pretrained(sam2_checkpoint).eval().requires_grad_(False)


@pytest.fixture
def segmenter(sam2_checkpoint) -> Sam2Segmenter:
    return Sam2Segmenter.from_checkpoint(sam2_checkpoint)


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
    sam: Sam2Model, features: list[torch.Tensor], positions: torch.Tensor, prompts: torch.Tensor
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


def test_masks_are_those_of_transformers_sam2_from_pixels_on(sam, segmenter):
    frames = make_frames(3)
    processor = Sam2ImageProcessor(size={"height": SIZE, "width": SIZE})
    pixel_values = processor(images=list(frames), return_tensors="pt")["pixel_values"]
    _, prompts = make_inputs(3, 2)
    frame_inputs = build_frame_encoder(segmenter.config).encode(frames)
    mask_logits = segmenter(frame_inputs, prompts)
    assert mask_logits.shape == (3, 2, 4 * GRID, 4 * GRID)
    positions = sam.get_image_wide_positional_embeddings()
    expected = stock_masks(sam, sam.get_image_embeddings(pixel_values), positions, prompts)
    torch.testing.assert_close(mask_logits, expected, rtol=1e-4, atol=1e-4)
    assert mask_logits.std() > 0.1  # there is something to compare


def test_image_positions_are_sam2s(sam, segmenter):
    positions = sam.get_image_wide_positional_embeddings()
    torch.testing.assert_close(segmenter.image_positional_embeddings, positions)


@pytest.mark.parametrize("num_prompts", [1, 3])
def test_gradients_are_those_of_transformers_sam2(sam2_checkpoint, segmenter, num_prompts):
    stock = Sam2Model.from_pretrained(sam2_checkpoint).eval().double()
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
def test_postprocess_equals_sam2_image_processor(segmenter, size):
    mask_logits = torch.randn(2, 3, 16, 16)
    expected = Sam2ImageProcessor().post_process_masks(mask_logits[:, None], [size] * 2, binarize=False)
    torch.testing.assert_close(segmenter.postprocess(mask_logits, size), torch.cat(expected))


# The frozen image encoder


def test_frame_inputs_go_through_the_embedding_cache(segmenter, train_samples, tmp_path):
    encoder = build_frame_encoder(segmenter.config)
    frames = load_clip(train_samples[0]).frames
    EmbeddingCache(tmp_path, encoder, dtype="float32").ensure(train_samples[:1], lambda _: frames)
    cached = EmbeddingCache(tmp_path, encoder, dtype="float32").get(train_samples[0].media_id)
    assert torch.equal(cached, encoder.encode(frames))


def test_other_sizes_need_no_other_weights(sam2_checkpoint):
    segmenter = Sam2Segmenter.from_checkpoint(sam2_checkpoint, 96)
    frame_inputs = build_frame_encoder(segmenter.config).encode(make_frames())
    mask_logits = segmenter(frame_inputs, torch.randn(2, 1, WIDTH))
    assert mask_logits.shape == (2, 1, 24, 24)
    assert segmenter.postprocess(mask_logits, (48, 80)).shape == (2, 1, 48, 80)
    assert mask_logits.isfinite().all()


def test_image_size_is_a_multiple_of_32(sam2_checkpoint):
    with pytest.raises(ValueError, match="image_size 80 must be a multiple of 32 for SAM 2"):
        Sam2Segmenter.from_checkpoint(sam2_checkpoint, 80)


# Loading


def test_load_pretrained_fills_a_segmenter_built_from_its_completed_config(sam2_checkpoint, segmenter):
    config = complete_segmenter_config({"type": "sam2", "image_size": SIZE, "checkpoint": sam2_checkpoint})
    built = build_segmenter(config)
    built.load_pretrained()
    assert built.config["encoder_hash"] == segmenter.config["encoder_hash"]
    for name, tensor in segmenter.state_dict().items():
        assert torch.equal(built.state_dict()[name], tensor), name


def test_a_model_starts_from_sam2_and_is_saved_and_loaded_with_it(omni_checkpoint, sam2_checkpoint, tmp_path):
    segmenter = {"type": "sam2", "image_size": SIZE, "checkpoint": sam2_checkpoint}
    new = load_model(omni_checkpoint, segmenter=segmenter)
    pretrained = Sam2Segmenter.from_checkpoint(sam2_checkpoint)
    for name, tensor in pretrained.state_dict().items():
        assert torch.equal(new.model.seg_head.mask_decoder.state_dict()[name], tensor), name
    with torch.no_grad():
        new.model.seg_head.mask_decoder.mask_decoder.mask_tokens.weight.add_(1.0)  # as training would
    new.model.save_pretrained(tmp_path)
    new.processor.save_pretrained(tmp_path)
    again = load_model(str(tmp_path))
    assert again.segmenter_config == new.segmenter_config
    for name, tensor in new.model.seg_head.state_dict().items():
        assert torch.equal(again.model.seg_head.state_dict()[name], tensor), name
