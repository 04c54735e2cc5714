import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel, SamConfig, SamImageProcessor, SamModel

from aurora_rl.models.heads.segmenters import build_frame_encoder, build_segmenter
from aurora_rl.models.heads.segmenters.sam import (
    SamSegmenter,
    _resize_absolute_positions,
    _resize_relative_positions,
    resize_vision_encoder,
    resized_frame_size,
)
from aurora_rl.models.heads.segmenters.sam_family import hash_weights

SIZE, GRID, WIDTH = 128, 8, 32


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def sam() -> SamModel:
    """SAM in miniature: 8 x 8 patches, one layer with windows of 3 x 3 and one with global attention."""
    config = SamConfig(
        vision_config={
            "hidden_size": WIDTH,
            "output_channels": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIZE,
            "mlp_dim": 64,
            "window_size": 3,
            "global_attn_indexes": [1],
            "num_pos_feats": WIDTH // 2,
        },
        prompt_encoder_config={"hidden_size": WIDTH, "image_size": SIZE},
        mask_decoder_config={"hidden_size": WIDTH, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32},
    )
    torch.manual_seed(0)
    model = SamModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.3)  # untrained positional embeddings are zeros, which would hide mistakes
    return model


@pytest.fixture(scope="module")
def checkpoint(sam, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("sam")
    sam.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def segmenter(checkpoint) -> SamSegmenter:
    return SamSegmenter.from_checkpoint(checkpoint)


def make_inputs(num_frames: int, num_prompts: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(num_frames, WIDTH, GRID, GRID, generator=generator)
    prompts = torch.randn(num_frames, num_prompts, WIDTH, generator=generator)
    return embeddings, prompts


def make_frames(num_frames: int = 2, height: int = 48, width: int = 80) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


# The mask decoder


def test_masks_are_those_of_transformers_sam(sam, segmenter):
    image_embeddings, prompts = make_inputs(3, 2)
    positions = sam.get_image_wide_positional_embeddings()
    assert torch.equal(segmenter.image_positional_embeddings, positions)
    low_res_masks, _ = sam.mask_decoder(
        image_embeddings=image_embeddings,
        image_positional_embeddings=positions.expand(3, -1, -1, -1),
        sparse_prompt_embeddings=prompts[:, :, None],
        dense_prompt_embeddings=sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(3, -1, GRID, GRID),
        multimask_output=False,
    )
    mask_logits = segmenter(image_embeddings, prompts)
    assert mask_logits.shape == (3, 2, 4 * GRID, 4 * GRID)
    torch.testing.assert_close(mask_logits, low_res_masks[:, :, 0])


@pytest.mark.parametrize("num_prompts", [1, 3])
def test_gradients_are_those_of_transformers_sam(segmenter, num_prompts):
    segmenter.double()
    image_embeddings, prompts = make_inputs(2, num_prompts)
    gradients = []
    for stock in (True, False):
        segmenter.zero_grad()
        leaf = prompts.double().requires_grad_()
        if stock:
            masks, _ = segmenter.mask_decoder(
                image_embeddings=image_embeddings.double(),
                image_positional_embeddings=segmenter.image_positional_embeddings.expand(2, -1, -1, -1),
                sparse_prompt_embeddings=leaf[:, :, None],
                dense_prompt_embeddings=segmenter.no_mask_embed,
                multimask_output=False,
            )
        else:
            masks = segmenter.decode(image_embeddings.double(), leaf)
        masks.sigmoid().square().mean().backward()
        gradients.append({"prompts": leaf.grad} | {n: p.grad.clone() for n, p in segmenter.named_parameters()})
    expected, found = gradients
    assert expected["prompts"].abs().max() > 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_more_prompts_than_a_chunk_holds_are_decoded_in_several(segmenter, monkeypatch):
    image_embeddings, prompts = make_inputs(2, 5)
    segmenter.max_masks_per_chunk = None
    whole = segmenter(image_embeddings, prompts).detach()
    calls, decode = [], segmenter.decode
    monkeypatch.setattr(segmenter, "decode", lambda x, p: calls.append(tuple(p.shape[:2])) or decode(x, p))
    segmenter.max_masks_per_chunk = 2
    with torch.no_grad():
        torch.testing.assert_close(segmenter(image_embeddings, prompts), whole)
    assert calls == [(1, 2), (1, 2), (1, 1)] * 2


def test_without_sam_config_the_decoder_is_that_of_the_published_sizes():
    with torch.device("meta"):
        segmenter = build_segmenter({"type": "sam", "image_size": 1024, "checkpoint": "facebook/sam-vit-huge"})
    assert segmenter.prompt_dim == 256
    assert segmenter.frame_shape == (256, 64, 64)


class Owner(PreTrainedModel):
    """A transformers model that holds a segmenter, as our MLLMs do."""

    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.segmenter = build_segmenter(config.segmenter)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def save_owner(segmenter, folder, *, without: str = "nothing") -> None:
    """Save a model that holds the segmenter, leaving out the weights whose name starts with `without`."""
    owner = Owner(PretrainedConfig(segmenter=segmenter.config))
    owner.segmenter.load_state_dict(segmenter.state_dict())
    owner.save_pretrained(folder)
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith(without)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_transformers_model_saves_and_loads_its_segmenter(segmenter, tmp_path):
    save_owner(segmenter, tmp_path)
    loaded = Owner.from_pretrained(tmp_path).segmenter
    inputs = make_inputs(2, 2)
    assert torch.equal(loaded(*inputs), segmenter(*inputs))


def test_what_a_checkpoint_lacks_is_drawn_anew_and_what_it_has_is_spared(segmenter, tmp_path):
    save_owner(segmenter, tmp_path, without="segmenter.no_mask_embed")
    loaded = Owner.from_pretrained(tmp_path).segmenter
    assert loaded.no_mask_embed.eq(0).all()
    for name, tensor in segmenter.state_dict().items():
        assert name == "no_mask_embed" or torch.equal(loaded.state_dict()[name], tensor), name


def test_a_segmenter_new_to_a_checkpoint_is_drawn_whole(segmenter, tmp_path):
    save_owner(segmenter, tmp_path)
    save_file({"other": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(1)
    loaded = Owner.from_pretrained(tmp_path).segmenter
    # Sines and cosines of one angle, half the channels each.
    sine, cosine = loaded.image_positional_embeddings.chunk(2, dim=1)
    torch.testing.assert_close(sine.square() + cosine.square(), torch.ones_like(sine))
    assert loaded.no_mask_embed.eq(0).all()
    # PyTorch draws a Linear from U(-1/sqrt(32), 1/sqrt(32)), whose deviation is 0.102; transformers' own is 0.02.
    assert 0.08 < loaded.mask_decoder.transformer.layers[0].mlp.lin1.weight.std() < 0.12


# Geometry


def test_postprocess_cuts_the_padding_off_and_resizes_to_the_frame(checkpoint):
    segmenter = SamSegmenter.from_checkpoint(checkpoint, 64)
    # A frame of 24 x 48 becomes 32 x 64 with 32 rows of padding; a mask pixel is 4 x 4 of those, 3 x 3 of the frame.
    columns, rows = torch.full((2, 16, 16), -1.0)
    columns[:, 4:8] = 1.0
    rows[2:6] = 1.0
    rows[9:] = 100.0  # in the padding (row 8 is blended with the frame's last row)
    mask_logits = segmenter.postprocess(torch.stack([columns, rows])[None], (24, 48))
    assert mask_logits.shape == (1, 2, 24, 48)
    expected = torch.zeros(2, 24, 48, dtype=torch.bool)
    expected[0, :, 12:24] = True
    expected[1, 6:18] = True
    assert torch.equal(mask_logits[0] > 0, expected)


@pytest.mark.parametrize("size", [(48, 80), (81, 37), (128, 128), (300, 511)])
def test_postprocess_equals_sam_image_processor(segmenter, size):
    mask_logits = torch.randn(2, 3, 32, 32)
    processor = build_frame_encoder(segmenter.config)._image_processor
    inputs = processor(images=[np.zeros((*size, 3), np.uint8)] * 2, input_data_format="channels_last")
    resized = [tuple(int(side) for side in pair) for pair in inputs["reshaped_input_sizes"]]
    assert resized == [resized_frame_size(size, SIZE)] * 2
    expected = processor.post_process_masks(mask_logits[:, None], [size] * 2, resized, binarize=False)
    torch.testing.assert_close(segmenter.postprocess(mask_logits, size), torch.cat(expected))


def test_resized_frame_size_rounds_halves_up():
    assert resized_frame_size((24, 48), 64) == (32, 64)
    assert resized_frame_size((720, 1280), 1024) == (576, 1024)
    assert resized_frame_size((3, 128), 64) == (2, 64)  # 1.5 rows


# The frozen image encoder


def test_encoder_equals_sam_on_preprocessed_frames(sam, segmenter):
    frames = make_frames()
    processor = SamImageProcessor(size={"longest_edge": SIZE}, pad_size={"height": SIZE, "width": SIZE})
    pixel_values = processor(images=list(frames), return_tensors="pt")["pixel_values"]
    expected = torch.cat([sam.get_image_embeddings(frame) for frame in pixel_values.split(1)])
    encoder = build_frame_encoder(segmenter.config)
    image_embeddings = encoder.encode(frames)
    assert image_embeddings.shape == (2, *encoder.frame_shape) == (2, *segmenter.frame_shape)
    assert torch.equal(image_embeddings, expected)


def test_preprocessing_normalises_and_pads_below(segmenter):
    frames = np.full((1, 64, 128, 3), 255, dtype=np.uint8)
    pixel_values = build_frame_encoder(segmenter.config).preprocess(frames)
    assert pixel_values.shape == (1, 3, SIZE, SIZE)
    white = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(pixel_values[0, :, 63, 127], white)
    assert pixel_values[0, :, 64:].eq(0).all()


def test_a_frames_embedding_does_not_depend_on_its_neighbours(segmenter):
    encoder = build_frame_encoder(segmenter.config)
    batches = []
    encoder.vision_encoder.register_forward_pre_hook(lambda _module, args: batches.append(len(args[0])))
    frames = make_frames(3)
    assert torch.equal(encoder.encode(frames)[1:2], encoder.encode(frames[1:2]))
    assert batches == [1, 1, 1, 1]


def test_encoder_is_loaded_only_when_a_frame_is_encoded(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "sam")
    config = SamSegmenter.from_checkpoint(str(tmp_path / "sam")).config
    shutil.rmtree(tmp_path / "sam")
    encoder = build_frame_encoder(config)
    moved = build_frame_encoder({**config, "checkpoint": checkpoint})
    assert encoder.frame_shape == (WIDTH, GRID, GRID)
    assert encoder.fingerprint == moved.fingerprint
    with pytest.raises(OSError):
        encoder.encode(make_frames())
    moved.encode(make_frames())


def test_encoder_moves_before_and_after_it_is_loaded(segmenter):
    encoder = build_frame_encoder(segmenter.config).to("meta")
    assert "vision_encoder" not in vars(encoder)
    assert encoder.vision_encoder.pos_embed.device.type == "meta"
    encoder = build_frame_encoder(segmenter.config)
    assert encoder.vision_encoder.pos_embed.device.type == "cpu"
    assert encoder.to("meta").encode(make_frames()).device.type == "meta"


def test_hash_changes_with_one_weight_a_name_or_a_shape():
    module = torch.nn.Linear(2, 3)
    before = hash_weights(module)
    assert hash_weights(module) == before
    with torch.no_grad():
        module.bias[2] += 1e-3
    assert hash_weights(module) != before
    zeros = torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 2, bias=False)
    for linear in zeros:
        torch.nn.init.zeros_(linear.weight)
    assert hash_weights(zeros[0]) != hash_weights(zeros[1])


# Other image sizes


def test_native_size_keeps_the_encoder(sam):
    assert resize_vision_encoder(sam.vision_encoder, SIZE) is sam.vision_encoder


def test_half_size_runs_with_interpolated_positions(sam, checkpoint):
    resized = resize_vision_encoder(sam.vision_encoder, 64)
    pixel_values = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    native = sam.vision_encoder
    positions = F.interpolate(native.pos_embed.permute(0, 3, 1, 2), size=(4, 4), mode="bicubic").permute(0, 2, 3, 1)
    hidden_states = native.patch_embed.projection(pixel_values).permute(0, 2, 3, 1) + positions
    for layer in native.layers:  # SAM's attention interpolates relative positions to the grid it is given
        hidden_states = layer(hidden_states)
    expected = native.neck(hidden_states)
    image_embeddings = resized(pixel_values).last_hidden_state
    assert image_embeddings.shape == (2, WIDTH, 4, 4)
    torch.testing.assert_close(image_embeddings, expected)


def test_windowed_layers_keep_their_relative_positions(sam):
    resized = resize_vision_encoder(sam.vision_encoder, 64)
    for axis in ("rel_pos_h", "rel_pos_w"):
        windowed, whole = (getattr(layer.attn, axis) for layer in resized.layers)
        assert torch.equal(windowed, getattr(sam.vision_encoder.layers[0].attn, axis))
        assert windowed.shape == (2 * 3 - 1, 16)
        assert whole.shape == (2 * 4 - 1, 16)
    assert resized.config.image_size == 64
    assert sam.vision_encoder.config.image_size == SIZE


def test_relative_positions_are_resized_about_the_offset_zero():
    offsets = torch.arange(-7.0, 8.0)[:, None]  # (15, 1), a grid of 8
    # Row i of 7 lies at (i + 0.5) * 15 / 7 - 0.5 of 15, which is 15 / 7 an offset.
    expected = torch.tensor([-45 / 7, -30 / 7, -15 / 7, 0, 15 / 7, 30 / 7, 45 / 7])[:, None]
    torch.testing.assert_close(_resize_relative_positions(offsets, 4), expected)


def test_absolute_positions_are_resized_at_cell_centres():
    columns = torch.arange(8.0).expand(8, 8)[None, :, :, None]
    resized = _resize_absolute_positions(columns, 4)
    assert resized.shape == (1, 4, 4, 1)
    # Columns 1 and 2 of 4 lie at 2.5 and 4.5 of 8; a cubic keeps a ramp where no border is near.
    torch.testing.assert_close(resized[0, :, 1:3, 0], torch.tensor([2.5, 4.5]).expand(4, 2))


def test_half_size_from_frames_to_masks(checkpoint):
    segmenter = SamSegmenter.from_checkpoint(checkpoint, 64)
    image_embeddings = build_frame_encoder(segmenter.config).encode(make_frames())
    mask_logits = segmenter(image_embeddings, torch.randn(2, 1, WIDTH))
    assert mask_logits.shape == (2, 1, 16, 16)
    assert segmenter.postprocess(mask_logits, (48, 80)).shape == (2, 1, 48, 80)
    assert mask_logits.isfinite().all()


def test_half_size_samples_the_image_positions_at_its_own_cell_centres(checkpoint, sam):
    segmenter = SamSegmenter.from_checkpoint(checkpoint, 64)
    centres = (torch.arange(4) + 0.5) / 4
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    expected = sam.shared_image_embedding(torch.stack([x, y], dim=-1)).permute(2, 0, 1)[None]
    torch.testing.assert_close(segmenter.image_positional_embeddings, expected)


def test_image_size_is_a_multiple_of_the_patch_size(checkpoint, sam):
    with pytest.raises(ValueError, match="image_size 72 must be a multiple of SAM's patch size 16"):
        SamSegmenter.from_checkpoint(checkpoint, 72)
    with pytest.raises(ValueError, match="image_size 72 must be a multiple"):
        resize_vision_encoder(sam.vision_encoder, 72)
