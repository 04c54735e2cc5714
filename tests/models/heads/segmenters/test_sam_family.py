"""What holds of SAM and its successors alike, on checkpoints in miniature."""

import copy
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from aurora_rl.models.heads.segmenters import SEGMENTERS, build_frame_encoder, build_segmenter, memory
from aurora_rl.models.heads.segmenters.sam_family import SamFamilySegmenter


@dataclasses.dataclass(frozen=True)
class Kind:
    """One of the family, and the sizes of its miniature."""

    segmenter_class: type[SamFamilySegmenter]
    checkpoint: str
    image_size: int
    frame_shape: tuple[int, int, int]
    prompt_dim: int

    def inputs(self, num_frames: int, num_prompts: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Frame inputs and prompts."""
        generator = torch.Generator().manual_seed(0)
        frame_inputs = torch.randn(num_frames, *self.frame_shape, generator=generator)
        return frame_inputs, torch.randn(num_frames, num_prompts, self.prompt_dim, generator=generator)


#: Fixture of the checkpoint, and the sizes.
SIZES = {
    "edgetam": ("edgetam_checkpoint", 64, (512, 4, 4), 128),
    "sam": ("sam_checkpoint", 128, (32, 8, 8), 32),
    "sam2": ("sam2_checkpoint", 64, (512, 4, 4), 128),
    "sam3_tracker": ("sam3_checkpoint", 56, (512, 4, 4), 128),
    "sam_hq": ("sam_hq_checkpoint", 128, (96, 8, 8), 32),
}


@pytest.fixture(scope="module", params=sorted(SIZES))
def kind(request: pytest.FixtureRequest) -> Kind:
    fixture, *sizes = SIZES[request.param]
    segmenter_class = SEGMENTERS[request.param]
    assert issubclass(segmenter_class, SamFamilySegmenter)
    return Kind(segmenter_class, request.getfixturevalue(fixture), *sizes)


@pytest.fixture(scope="module")
def loaded(kind: Kind) -> SamFamilySegmenter:
    return kind.segmenter_class.from_checkpoint(kind.checkpoint)


@pytest.fixture
def segmenter(loaded: SamFamilySegmenter) -> SamFamilySegmenter:
    """A copy, which a test may change."""
    return copy.deepcopy(loaded)


def make_frames(num_frames: int = 2, height: int = 48, width: int = 80) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


# The mask decoder


def test_chunks_change_neither_masks_nor_gradients(kind, segmenter, monkeypatch):
    frame_inputs, prompts = kind.inputs(5, 3)
    segmenter.double()  # so that what is left to differ is not the rounding of other batch sizes
    results, calls = [], []
    decode = segmenter.decode
    monkeypatch.setattr(segmenter, "decode", lambda x, p: calls.append(len(p)) or decode(x, p))
    for max_masks in (None, 6):
        segmenter.max_masks_per_chunk = max_masks
        segmenter.zero_grad()
        leaf = prompts.clone().requires_grad_()
        mask_logits = segmenter(frame_inputs, leaf)
        mask_logits.sigmoid().mean().backward()
        results.append([mask_logits.detach(), leaf.grad, *(p.grad.clone() for p in segmenter.parameters())])
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-8)
    # All at once; then 6 masks = 2 frames a chunk, each decoded again in the backward pass (last chunk first).
    assert calls == [5, 2, 2, 1, 1, 2, 2]


def give_memory(monkeypatch: pytest.MonkeyPatch, total: float, free: float) -> None:
    monkeypatch.setattr(memory, "device_memory", lambda device: (int(total), int(free)))


@pytest.mark.parametrize(
    ("total", "free", "trained", "shown"),
    [
        (80e9, 60e9, 32, 64),  # a 16th of all, 5 GB: 49 masks of 101 MB, 108 of 46 MB
        (24e9, 20e9, 8, 32),  # 1.5 GB: 14 and 32
        (80e9, 2e9, 8, 16),  # half of what is free, 1 GB: 9 and 21
        (80e9, 1e6, 1, 1),
    ],
)
def test_chunks_follow_the_devices_memory(total, free, trained, shown, monkeypatch):
    give_memory(monkeypatch, total, free)
    with torch.device("meta"):
        segmenter = build_segmenter({"type": "sam", "image_size": 1024})
    gpu = torch.device("cuda")
    assert segmenter.masks_that_fit(gpu) == trained
    with torch.no_grad():
        assert segmenter.masks_that_fit(gpu) == shown


def test_a_decoder_of_half_the_precision_decodes_twice_as_many(segmenter, monkeypatch):
    give_memory(monkeypatch, 80e9, 60e9)
    gpu = torch.device("cuda")
    whole = segmenter.masks_that_fit(gpu)
    assert segmenter.bfloat16().masks_that_fit(gpu) == 2 * whole


def test_scarce_memory_changes_neither_masks_nor_gradients(kind, segmenter, monkeypatch):
    frame_inputs, prompts = kind.inputs(3, 5)
    segmenter.double()
    one_mask = segmenter.copies_with_gradients * segmenter.image_positional_embeddings.numel() * 8  # bytes
    decode, results = segmenter.decode, []
    for masks, expected in ((1, {1}), (2.5, {1, 2}), (1000, {15})):
        give_memory(monkeypatch, 1e15, 8 * masks * one_mask)  # of which a host gives an 8th
        sizes: list[int] = []
        monkeypatch.setattr(segmenter, "decode", lambda x, p, to=sizes: to.append(p[..., 0].numel()) or decode(x, p))
        segmenter.zero_grad()
        leaf = prompts.clone().requires_grad_()
        mask_logits = segmenter(frame_inputs, leaf)
        mask_logits.sigmoid().mean().backward()
        assert set(sizes) == expected
        results.append([mask_logits.detach(), leaf.grad, *(p.grad.clone() for p in segmenter.parameters())])
    for found in results[:2]:
        for chunked, whole in zip(found, results[2], strict=True):
            torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-6)  # attention's softmax is in float32


def test_memory_of_this_machine_is_read():
    total, free = memory.device_memory(torch.device("cpu"))
    assert 0 < free <= total
    assert 0 < memory.decoding_budget(torch.device("cpu")) <= total / 32


@pytest.mark.gpu
def test_memory_of_a_gpu_counts_what_is_held_in_reserve():
    device = torch.device("cuda")
    total, free = memory.device_memory(device)
    block = torch.empty(2**28, dtype=torch.uint8, device=device)
    assert memory.device_memory(device)[1] <= free - 2**27
    del block
    assert memory.device_memory(device) == (total, pytest.approx(free, abs=2**27))


def test_without_gradients_chunks_are_decoded_once(kind, segmenter, monkeypatch):
    frame_inputs, prompts = kind.inputs(3, 1)
    whole = segmenter(frame_inputs, prompts).detach()
    calls = []
    decode = segmenter.decode
    monkeypatch.setattr(segmenter, "decode", lambda x, p: calls.append(len(p)) or decode(x, p))
    segmenter.max_masks_per_chunk = 1
    with torch.no_grad():
        torch.testing.assert_close(segmenter(frame_inputs, prompts), whole, rtol=1e-4, atol=1e-5)
    assert calls == [1, 1, 1]


def test_masks_are_float32_under_bfloat16_weights(kind, segmenter):
    frame_inputs, prompts = kind.inputs(1, 1)
    assert segmenter.to(torch.bfloat16)(frame_inputs.half(), prompts).dtype == torch.float32


def test_frame_inputs_of_another_size_are_refused(kind, segmenter):
    frame_inputs, prompts = kind.inputs(1, 1)
    channels, grid, _ = kind.frame_shape
    wanted = rf"frame inputs are \(1, {channels}, 2, 2\), expected \(N, {channels}, {grid}, {grid}\)"
    with pytest.raises(ValueError, match=wanted):
        segmenter(frame_inputs[..., :2, :2], prompts)


# The frozen image encoder


def test_the_encoder_is_frozen_and_outside_the_segmenter(kind, segmenter):
    encoder = build_frame_encoder(segmenter.config)
    frame_inputs = encoder.encode(make_frames())
    assert frame_inputs.shape == (2, *encoder.frame_shape) == (2, *segmenter.frame_shape) == (2, *kind.frame_shape)
    assert not frame_inputs.requires_grad
    assert not encoder.vision_encoder.training
    assert not any(p.requires_grad for p in encoder.vision_encoder.parameters())
    own = [name for name, _ in segmenter.named_parameters()]
    frozen = ("vision", "patch_embed", "conv_s", "memory", "iou_pred", "obj_score_head", "compress_vit", "encoder_")
    assert not any(part in name for name in own for part in frozen)
    segmenter(frame_inputs, torch.randn(2, 1, kind.prompt_dim)).mean().backward()
    assert all(p.grad is None for p in encoder.vision_encoder.parameters())


def test_a_fingerprint_tells_size_dtype_and_weights_apart(kind, segmenter):
    config = segmenter.config
    fingerprints = [
        build_frame_encoder(config).fingerprint,
        build_frame_encoder({**config, "image_size": 2 * kind.image_size}).fingerprint,
        build_frame_encoder(config, dtype=torch.bfloat16).fingerprint,
        build_frame_encoder({**config, "encoder_hash": "0" * 64}).fingerprint,
    ]
    assert len(set(fingerprints)) == 4
    unhashed = {k: v for k, v in config.items() if k != "encoder_hash"}
    assert build_frame_encoder(unhashed).fingerprint == fingerprints[0]


def test_an_encoder_with_other_weights_than_the_segmenter_was_made_for_is_refused(segmenter):
    encoder = build_frame_encoder({**segmenter.config, "encoder_hash": "0" * 64})
    with pytest.raises(ValueError, match="is not the one that this segmenter was made for"):
        encoder.encode(make_frames())


# Loading


def test_load_pretrained_fills_a_segmenter_built_from_its_config(segmenter):
    config = {k: v for k, v in segmenter.config.items() if k not in ("encoder_hash", "revision")}
    built = build_segmenter(config).to(torch.bfloat16)  # as a model in bfloat16 holds it
    built.load_pretrained()
    assert built.config["encoder_hash"] == segmenter.config["encoder_hash"]
    for name, tensor in segmenter.state_dict().items():
        assert torch.equal(built.state_dict()[name], tensor.bfloat16()), name


def test_load_pretrained_refuses_a_checkpoint_of_another_shape(kind):
    name = kind.segmenter_class.__name__
    config = {
        "type": kind.segmenter_class.frame_encoder.kind,
        "image_size": kind.image_size,
        "checkpoint": kind.checkpoint,
    }
    with pytest.raises(ValueError, match=f"'hidden_size': {kind.prompt_dim}.*, not {{}}: set 'sam_config' to {name}"):
        build_segmenter(config).load_pretrained()


def test_pickled_weights_are_refused(kind, tmp_path):
    shutil.copy(Path(kind.checkpoint) / "config.json", tmp_path)
    torch.save(load_file(Path(kind.checkpoint) / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        kind.segmenter_class.from_checkpoint(str(tmp_path))


def test_a_checkpoint_that_is_not_a_whole_sam_is_refused(kind, tmp_path):
    shutil.copytree(kind.checkpoint, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    weights = {name: weight for name, weight in weights.items() if not name.endswith("mask_decoder.mask_tokens.weight")}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks for example mask_decoder.mask_tokens.weight"):
        kind.segmenter_class.from_checkpoint(str(tmp_path))
