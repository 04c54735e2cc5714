import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from aurora_rl.models.heads.segmenters import build_frame_encoder, build_segmenter
from aurora_rl.models.heads.segmenters.dot import BACKGROUND_BIAS

CONFIG = {"type": "dot", "image_size": 32, "width": 8}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def make_inputs(num_frames: int, num_prompts: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    frame_inputs = torch.randn(num_frames, 3, 32, 32, generator=generator)
    prompts = torch.randn(num_frames, num_prompts, 9, generator=generator)
    return frame_inputs, prompts


def test_masks_have_half_the_image_size_and_prompts_one_channel_more_than_the_features():
    segmenter = build_segmenter(CONFIG)
    frame_inputs, prompts = make_inputs(4, 3)
    assert segmenter.prompt_dim == 9
    assert segmenter(frame_inputs, prompts).shape == (4, 3, 16, 16)


def test_logit_is_features_times_kernel_plus_bias_plus_background(monkeypatch):
    segmenter = build_segmenter(CONFIG)
    features = torch.zeros(1, 8, 1, 2)
    features[0, 0] = torch.tensor([[1.0, 2.0]])
    features[0, 7] = torch.tensor([[10.0, 0.0]])
    monkeypatch.setattr(segmenter, "pixel_features", lambda _: features)
    prompts = torch.zeros(1, 2, 9)
    prompts[0, 0, 0], prompts[0, 0, 8] = 3.0, 0.5
    prompts[0, 1, 7] = -1.0
    logits = segmenter(torch.zeros(1, 3, 32, 32), prompts)
    # prompt 0: 3 * [1, 2] + 0.5 - 2; prompt 1: -1 * [10, 0] - 2
    assert BACKGROUND_BIAS == -2
    assert logits.tolist() == [[[[1.5, 4.5]], [[-12.0, -2.0]]]]


def test_features_are_computed_once_for_all_prompts_of_a_frame(monkeypatch):
    segmenter = build_segmenter(CONFIG)
    seen = []
    pixel_features = segmenter.pixel_features
    monkeypatch.setattr(segmenter, "pixel_features", lambda x: seen.append(len(x)) or pixel_features(x))
    segmenter(*make_inputs(4, 6))
    assert seen == [4]


def test_all_prompts_at_once_equal_one_prompt_at_a_time():
    segmenter = build_segmenter(CONFIG)
    frame_inputs, prompts = make_inputs(3, 4)
    one_by_one = [segmenter(frame_inputs, prompts[:, g : g + 1]) for g in range(4)]
    torch.testing.assert_close(segmenter(frame_inputs, prompts), torch.cat(one_by_one, dim=1))


def test_gradient_reaches_the_prompt_and_every_parameter():
    segmenter = build_segmenter(CONFIG)
    frame_inputs, prompts = make_inputs(2, 2)
    prompts.requires_grad_()
    segmenter(frame_inputs, prompts).square().mean().backward()
    assert (prompts.grad.abs().sum(dim=-1) > 0).all()
    assert all(p.grad is not None for p in segmenter.parameters())


def test_chunks_change_neither_masks_nor_gradients(monkeypatch):
    segmenter = build_segmenter(CONFIG)
    frame_inputs, prompts = make_inputs(5, 2)
    segmenter.double()  # so that what is left to differ is not the rounding of other batch sizes
    results, calls = [], []
    decode = segmenter.decode
    monkeypatch.setattr(segmenter, "decode", lambda x, p: calls.append(tuple(p.shape[:2])) or decode(x, p))
    for max_masks in (None, 4):
        segmenter.max_masks_per_chunk = max_masks
        segmenter.zero_grad()
        leaf = prompts.clone().requires_grad_()
        logits = segmenter(frame_inputs, leaf)
        logits.sigmoid().mean().backward()
        results.append([logits.detach(), leaf.grad, *(p.grad.clone() for p in segmenter.parameters())])
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-8)
    # All at once; then 4 masks = 2 frames a chunk, each decoded again in the backward pass (last chunk first).
    assert calls == [(5, 2), (2, 2), (2, 2), (1, 2), (1, 2), (2, 2), (2, 2)]


def test_a_chunk_holds_at_least_one_frame():
    segmenter = build_segmenter(CONFIG)
    segmenter.max_masks_per_chunk = 2
    with torch.no_grad():
        assert segmenter(*make_inputs(2, 5)).shape == (2, 5, 16, 16)


def test_masks_are_float32_under_bfloat16_weights():
    segmenter = build_segmenter(CONFIG).to(torch.bfloat16)
    frame_inputs, prompts = make_inputs(1, 1)
    assert segmenter(frame_inputs, prompts.to(torch.bfloat16)).dtype == torch.float32


def test_state_dict_round_trip_through_the_config_keeps_every_bit():
    segmenter = build_segmenter(CONFIG)
    rebuilt = build_segmenter(json.loads(json.dumps(segmenter.config)))
    inputs = make_inputs(2, 2)
    assert not torch.equal(rebuilt(*inputs), segmenter(*inputs))
    rebuilt.load_state_dict(segmenter.state_dict())
    assert torch.equal(rebuilt(*inputs), segmenter(*inputs))


def test_reset_parameters_draws_new_weights():
    segmenter = build_segmenter(CONFIG)
    before = segmenter.up2.weight.clone()
    torch.manual_seed(1)
    segmenter.reset_parameters()
    assert not torch.equal(segmenter.up2.weight, before)
    assert segmenter.down1[1].weight.eq(1).all()


def test_postprocess_stretches_the_square_to_the_frame():
    segmenter = build_segmenter(CONFIG)
    rows, columns = torch.full((2, 4, 4), -1.0)
    rows[1:3] = 1.0
    columns[:, 1:3] = 1.0
    mask_logits = segmenter.postprocess(torch.stack([rows, columns])[None], (8, 16))
    assert mask_logits.shape == (1, 2, 8, 16)
    expected = torch.zeros(2, 8, 16, dtype=torch.bool)
    expected[0, 2:6] = True  # rows 1..2 of 4 are rows 2..5 of 8
    expected[1, :, 4:12] = True  # columns 1..2 of 4 are columns 4..11 of 16
    assert torch.equal(mask_logits[0] > 0, expected)


def test_encoder_scales_bytes_to_minus_one_and_one():
    frames = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    frames[1], frames[0, 3, 5] = 255, (255, 0, 51)
    frame_inputs = build_frame_encoder(CONFIG).encode(frames)
    assert frame_inputs.shape == (2, 3, 32, 32)
    assert frame_inputs[1].eq(1).all()
    assert frame_inputs[0, :, 3, 4].tolist() == [-1, -1, -1]
    torch.testing.assert_close(frame_inputs[0, :, 3, 5], torch.tensor([1.0, -1.0, -0.6]))


def test_encoder_squeezes_frames_that_are_not_square():
    frames = np.zeros((1, 8, 64, 3), dtype=np.uint8)
    frames[:, :, 32:] = 255  # right half white
    frame_inputs = build_frame_encoder(CONFIG).encode(frames)
    assert frame_inputs.shape == (1, 3, 32, 32)
    torch.testing.assert_close(frame_inputs[..., :15], torch.full((1, 3, 32, 15), -1.0))
    torch.testing.assert_close(frame_inputs[..., 17:], torch.full((1, 3, 32, 15), 1.0))


def test_dot_encoder_is_not_worth_caching():
    assert not build_frame_encoder(CONFIG).cacheable


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)],
    ids=["float", "one frame without its axis", "no frame"],
)
def test_frames_of_another_form_are_refused(frames):
    with pytest.raises(ValueError, match=r"expected \(F, H, W, 3\) uint8"):
        build_frame_encoder(CONFIG).encode(frames)


def test_shapes_that_do_not_match_are_refused():
    segmenter = build_segmenter(CONFIG)
    frame_inputs, prompts = make_inputs(2, 1)
    with pytest.raises(ValueError, match=r"prompts are \(2, 1, 8\), expected \(N, G, 9\)"):
        segmenter(frame_inputs, prompts[..., :8])
    with pytest.raises(ValueError, match="2 frame inputs for prompts of 1 frames"):
        segmenter(frame_inputs, prompts[:1])
    with pytest.raises(ValueError, match=r"expected \(N, 3, 32, 32\)"):
        segmenter(frame_inputs[..., :16], prompts)


def test_image_size_and_width_are_multiples_of_eight():
    for config in ({**CONFIG, "image_size": 20}, {**CONFIG, "width": 12}):
        with pytest.raises(ValueError, match="multiples of 8"):
            build_segmenter(config)


@pytest.mark.parametrize("build", [build_segmenter, build_frame_encoder])
def test_unknown_type_is_refused_with_the_known_ones(build):
    with pytest.raises(ValueError, match=r"'dott': choose one of \['dot', 'edgetam', .*'sam_hq'\]"):
        build({"type": "dott", "image_size": 32})


def test_it_learns_to_tell_a_red_square_from_a_blue_one():
    torch.manual_seed(0)
    pixels = torch.full((16, 3, 32, 32), -0.5) + 0.1 * torch.randn(16, 3, 32, 32)
    truth = torch.zeros(16, 2, 32, 32)
    for i in range(16):  # red in the upper half, blue in the lower one, at columns that vary
        for kind, (channel, top) in enumerate([(0, 4), (2, 20)]):
            left = torch.randint(24, ()).item()
            pixels[i, channel, top : top + 8, left : left + 8] = 1.0
            truth[i, kind, top : top + 8, left : left + 8] = 1.0
    segmenter = build_segmenter(CONFIG)
    prompts = torch.nn.Parameter(0.1 * torch.randn(2, 9))
    optimizer = torch.optim.AdamW([*segmenter.parameters(), prompts], lr=1e-2)
    for _ in range(80):
        logits = segmenter.postprocess(segmenter(pixels, prompts.expand(16, -1, -1)), (32, 32))
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logits, truth).backward()
        optimizer.step()
    pred_masks, gt_masks = logits > 0, truth > 0
    iou = (pred_masks & gt_masks).sum() / (pred_masks | gt_masks).sum()
    assert iou > 0.9
