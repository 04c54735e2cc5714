"""What holds of every mask decoder, and a control for each check: a decoder that breaks it is found.

That it runs with bf16 weights and float32 buffers, as DeepSpeed leaves them, is in
`tests/models/test_half_precision.py`; its masks beside those of transformers are in the file of each.
"""

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aurora_rl.caches.image_embeddings import EmbeddingCache, EmbeddingCacheError
from aurora_rl.data.media import load_clip
from aurora_rl.export.hub_folder import HubExport, export_for_hub
from aurora_rl.export.model_card import CardDetails
from aurora_rl.models.heads import MaskHead
from aurora_rl.models.heads.segmenters import (
    FRAME_ENCODERS,
    SEGMENTERS,
    FrameEncoder,
    Segmenter,
    build_frame_encoder,
    build_segmenter,
    complete_segmenter_config,
)
from aurora_rl.models.heads.segmenters.dot import DotFrameEncoder, DotSegmenter
from aurora_rl.models.loading import load_model


@dataclasses.dataclass(frozen=True)
class Case:
    """A decoder at a small size.

    Attributes:
        checkpoint: name of the fixture of its checkpoint; None for a decoder that has none.
        image_size: the checkpoint's own.
        other_size: one for which its weights are adapted.
        no_size: one that it cannot have.
        published_size: image size of published checkpoints.
    """

    checkpoint: str | None
    image_size: int
    other_size: int
    no_size: int
    published_size: int = 1024


CASES = {
    "dot": Case(None, 32, 64, 20),
    "edgetam": Case("edgetam_checkpoint", 64, 96, 80),
    "sam": Case("sam_checkpoint", 128, 64, 72),
    "sam2": Case("sam2_checkpoint", 64, 96, 80),
    "sam3_tracker": Case("sam3_checkpoint", 56, 84, 64, published_size=1008),
    "sam_hq": Case("sam_hq_checkpoint", 128, 64, 72),
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """A decoder with its frozen half."""

    segmenter: Segmenter
    encoder: FrameEncoder

    def inputs(self, num_frames: int, num_prompts: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        prompts = torch.randn(num_frames, num_prompts, self.segmenter.prompt_dim, generator=generator)
        return self.encoder.encode(make_frames(num_frames)), prompts


def make_frames(num_frames: int = 2, height: int = 48, width: int = 80) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=sorted(SEGMENTERS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def config(kind: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Config of a new decoder, as a recipe has it."""
    case = CASES[kind]
    new = {"type": kind, "image_size": case.image_size}
    if case.checkpoint is None:
        return {**new, "width": 16}
    return {**new, "checkpoint": request.getfixturevalue(case.checkpoint)}


@pytest.fixture(scope="module")
def whole(config: dict[str, Any]) -> Pair:
    """The decoder with its pretrained weights; tests change copies of it."""
    torch.manual_seed(0)
    segmenter = build_segmenter(complete_segmenter_config(config))
    segmenter.load_pretrained()
    return Pair(segmenter, build_frame_encoder(segmenter.config))


@pytest.fixture
def pair(whole: Pair) -> Pair:
    return Pair(copy.deepcopy(whole.segmenter), whole.encoder)


def broken(segmenter: type[Segmenter] = DotSegmenter, encoder: type[FrameEncoder] = DotFrameEncoder) -> Pair:
    """A decoder that breaks one part of the contract."""
    torch.manual_seed(0)
    made = segmenter({"type": "dot", "image_size": 32, "width": 16})
    return Pair(made, encoder(made.config))


def test_every_type_of_decoder_is_a_case_here():
    assert CASES.keys() == SEGMENTERS.keys() == FRAME_ENCODERS.keys()


# Frames


def check_cached_equals_fresh(pair: Pair, samples: list, folder: Path) -> None:
    frames = load_clip(samples[0]).frames
    EmbeddingCache(folder, pair.encoder, dtype="float32").ensure(samples[:1], lambda _: frames)
    cached = EmbeddingCache(folder, pair.encoder, dtype="float32").get(samples[0].media_id)
    assert torch.equal(cached, pair.encoder.encode(frames))


def test_cached_frame_inputs_are_the_fresh_ones(pair, train_samples, tmp_path):
    if pair.encoder.cacheable:
        check_cached_equals_fresh(pair, train_samples, tmp_path)
    else:
        with pytest.raises(EmbeddingCacheError, match="cheaper than a disk read"):
            EmbeddingCache(tmp_path, pair.encoder)


def test_masks_of_frame_inputs_cached_in_float16_are_near_the_fresh_ones(pair):
    frame_inputs, prompts = pair.inputs(2, 2)
    fresh, cached = (pair.segmenter(inputs, prompts).detach() for inputs in (frame_inputs, frame_inputs.half()))
    assert (cached - fresh).norm() < 2e-3 * fresh.norm()


def check_a_frame_is_encoded_alone(encoder: FrameEncoder) -> None:
    frames = make_frames(3)
    assert torch.equal(encoder.encode(frames)[1:2], encoder.encode(frames[1:2]))


def test_a_frames_inputs_do_not_depend_on_its_neighbours(pair):
    check_a_frame_is_encoded_alone(pair.encoder)


class Normalising(DotFrameEncoder):
    """Subtracts the clip's mean; and keeps a copy of what it has returned, which is another one each time."""

    cacheable = True
    calls = 0

    def encode(self, frames):
        self.calls += 1
        encoded = super().encode(frames)
        return encoded - encoded.mean() + self.calls


def test_an_encoder_that_mixes_frames_or_changes_is_found(train_samples, tmp_path):
    pair = broken(encoder=Normalising)
    with pytest.raises(AssertionError):
        check_a_frame_is_encoded_alone(pair.encoder)
    with pytest.raises(AssertionError):
        check_cached_equals_fresh(pair, train_samples, tmp_path)


# Masks


def check_batch_equals_alone(pair: Pair) -> None:
    frame_inputs, prompts = pair.inputs(3, 4)
    alone = [
        torch.cat([pair.segmenter(frame_inputs[n : n + 1], prompts[n : n + 1, g : g + 1]) for g in range(4)], dim=1)
        for n in range(3)
    ]
    together = pair.segmenter(frame_inputs, prompts)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-5)
    assert together.std(dim=(0, 1)).max() > 1e-4  # frames and prompts make a difference


def test_all_prompts_and_frames_at_once_equal_one_at_a_time(pair):
    check_batch_equals_alone(pair)


class Mixing(DotSegmenter):
    def decode(self, frame_inputs, prompts):
        return super().decode(frame_inputs, prompts - prompts.mean(dim=(0, 1)))


class Deaf(DotSegmenter):
    def decode(self, frame_inputs, prompts):
        return super().decode(torch.zeros_like(frame_inputs), torch.ones_like(prompts))


@pytest.mark.parametrize("segmenter", [Mixing, Deaf])
def test_a_decoder_that_mixes_prompts_or_ignores_them_is_found(segmenter):
    with pytest.raises(AssertionError):
        check_batch_equals_alone(broken(segmenter))


def check_gradients(pair: Pair) -> None:
    """Gradient in the decoder and the prompts, and nowhere else."""
    frame_inputs, prompts = pair.inputs(2, 2)
    assert not frame_inputs.requires_grad
    prompts.requires_grad_()
    pair.segmenter(frame_inputs, prompts).square().mean().backward()
    assert prompts.grad is not None
    assert (prompts.grad.abs().sum(dim=-1) > 0).all()
    assert [name for name, p in pair.segmenter.named_parameters() if p.grad is None] == []
    assert not any(buffer.requires_grad for buffer in pair.segmenter.buffers())
    frozen: nn.Module | None = vars(pair.encoder).get("vision_encoder")
    if frozen is not None:
        assert not any(p.requires_grad or p.grad is not None for p in frozen.parameters())
        assert not frozen.training
        ours, theirs = ({p.data_ptr() for p in module.parameters()} for module in (pair.segmenter, frozen))
        assert not ours & theirs


def test_gradients_reach_the_decoder_and_the_prompt_and_nothing_else(pair):
    check_gradients(pair)


class Detached(DotSegmenter):
    def decode(self, frame_inputs, prompts):
        return super().decode(frame_inputs, prompts.detach())


class Idle(DotSegmenter):
    def __init__(self, config):
        super().__init__(config)
        self.unused = nn.Linear(2, 2)


class Trained(DotFrameEncoder):
    def encode(self, frames):
        return super().encode(frames).requires_grad_()


@pytest.mark.parametrize(
    "pair", [broken(Detached), broken(Idle), broken(encoder=Trained)], ids=["prompt", "decoder", "encoder"]
)
def test_a_gradient_in_the_wrong_place_is_found(pair):
    with pytest.raises(AssertionError):
        check_gradients(pair)


def check_masks_lie_where_the_frame_does(pair: Pair, size: tuple[int, int]) -> None:
    """A mask of the frame's left half and one of its upper half, as the decoder would draw them."""
    frame_inputs, prompts = pair.inputs(1, 1)
    grid = pair.segmenter(frame_inputs, prompts).shape[-1]
    height, width = (
        round(grid * share) for share in pair.encoder.frame_extent(size, pair.segmenter.config["image_size"])
    )
    low_res = torch.full((2, grid, grid), -1.0)
    low_res[0, :, : width // 2] = low_res[1, : height // 2] = 1.0
    left, upper = pair.segmenter.postprocess(low_res, size) > 0
    assert left.shape == size
    assert abs(left.float().mean() - 0.5) < 0.07 and abs(upper.float().mean() - 0.5) < 0.07
    assert left[:, : int(0.4 * size[1])].all() and not left[:, int(0.6 * size[1]) :].any()
    assert upper[: int(0.4 * size[0])].all() and not upper[int(0.6 * size[0]) :].any()


@pytest.mark.parametrize("size", [(48, 80), (90, 50)])
def test_masks_have_the_frames_size_and_lie_where_it_does(pair, size):
    check_masks_lie_where_the_frame_does(pair, size)


class Padded(DotFrameEncoder):
    @classmethod
    def frame_extent(cls, size, image_size):
        return FRAME_ENCODERS["sam"].frame_extent(size, image_size)


def test_masks_of_a_padded_frame_that_are_not_cut_out_are_found():
    with pytest.raises(AssertionError):
        check_masks_lie_where_the_frame_does(broken(encoder=Padded), (48, 80))


# Sizes


def test_another_image_size_is_adapted_to(kind, config):
    case = CASES[kind]
    assert build_segmenter(config).frame_shape != build_segmenter({**config, "image_size": case.other_size}).frame_shape
    segmenter = build_segmenter(complete_segmenter_config({**config, "image_size": case.other_size}))
    segmenter.load_pretrained()
    encoder = build_frame_encoder(segmenter.config)
    frame_inputs = encoder.encode(make_frames())
    mask_logits = segmenter(frame_inputs, torch.randn(2, 1, segmenter.prompt_dim))
    assert frame_inputs.shape[1:] == segmenter.frame_shape == encoder.frame_shape
    assert mask_logits.isfinite().all()
    assert segmenter.postprocess(mask_logits, (48, 80)).shape == (2, 1, 48, 80)


def test_an_image_size_that_it_cannot_have_is_an_error_that_names_it(kind, config):
    size = CASES[kind].no_size
    with pytest.raises(ValueError, match=f"image_size {size} .*must be a? ?multiple"):
        build_segmenter({**config, "image_size": size})


# Checkpoints


def check_rebuilds(pair: Pair) -> None:
    """The same masks after a save and a load, from the plain config and the state dict alone."""
    written = json.loads(json.dumps(pair.segmenter.config))
    assert written == pair.segmenter.config
    torch.manual_seed(1)
    rebuilt = type(pair.segmenter)({**written, **({"checkpoint": "/nowhere"} if "checkpoint" in written else {})})
    inputs = pair.inputs(2, 2)
    assert not torch.equal(rebuilt(*inputs), pair.segmenter(*inputs))
    rebuilt.load_state_dict(pair.segmenter.state_dict())
    assert torch.equal(rebuilt(*inputs), pair.segmenter(*inputs))
    assert written == pair.segmenter.config  # what is built from it writes nothing into it


def test_the_config_and_the_state_dict_are_enough_to_rebuild_it(pair):
    check_rebuilds(pair)


class Forgetful(DotSegmenter):
    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("table", torch.randn(()), persistent=False)

    def decode(self, frame_inputs, prompts):
        return super().decode(frame_inputs, prompts) + self.table


def test_a_decoder_that_keeps_something_to_itself_is_found():
    with pytest.raises(AssertionError):
        check_rebuilds(broken(Forgetful))


def test_the_config_is_completed_from_the_checkpoint_that_it_names(kind, config, pair):
    completed = complete_segmenter_config(config)
    assert complete_segmenter_config(completed) == completed
    assert build_segmenter(completed).frame_shape == pair.segmenter.frame_shape
    if CASES[kind].checkpoint is None:
        assert completed == config
    else:
        assert completed.keys() - config.keys() == {"sam_config"}
        assert pair.segmenter.config.keys() - completed.keys() == {"encoder_hash"}
        with pytest.raises(ValueError, match="set 'sam_config' to"):  # control
            build_segmenter(config).load_pretrained()


def test_a_model_is_saved_loaded_and_exported_with_it(kind, config, omni_checkpoint, pair, tmp_path):
    """Once trained, a model needs the checkpoint for frames that are not cached, and for nothing else."""
    own = dict(config)
    if "checkpoint" in config:
        own["checkpoint"] = str(shutil.copytree(config["checkpoint"], tmp_path / "checkpoint"))
    new = load_model(omni_checkpoint, segmenter=own)
    head: MaskHead = new.model.seg_head
    if "checkpoint" in config:
        for name, tensor in pair.segmenter.state_dict().items():
            assert torch.equal(head.mask_decoder.state_dict()[name], tensor), name
        shutil.rmtree(own["checkpoint"])
    new.model.save_pretrained(tmp_path / "run")
    new.processor.save_pretrained(tmp_path / "run")
    options = HubExport(image_encoder="someone/sam" if "checkpoint" in config else None)
    export_for_hub(str(tmp_path / "run"), tmp_path / "exported", options, CardDetails(name="someone/model"))
    for folder, checkpoint in (("run", own.get("checkpoint")), ("exported", "someone/sam")):
        again = load_model(str(tmp_path / folder), dtype="float32")
        wanted = {**new.segmenter_config, **({"checkpoint": checkpoint} if "checkpoint" in config else {})}
        assert again.segmenter_config == wanted
        for name, tensor in head.state_dict().items():
            assert torch.equal(again.model.seg_head.state_dict()[name], tensor), name
        states = torch.randn(3, head.hidden_size)
        prompts = again.model.seg_head.predict(states)["sparse_prompt_embeddings"]
        assert prompts.shape == (3, pair.segmenter.prompt_dim)  # what a teacher's features are, without any frame
        assert torch.equal(prompts, head.predict(states)["sparse_prompt_embeddings"])


# Memory


def test_the_docs_say_what_cached_frames_take():
    """In float16 at the published size: a frame, and ten frames of each of 2,919 clips."""
    table = (Path(__file__).parents[4] / "docs" / "new_mask_head.md").read_text()
    for kind, case in CASES.items():
        if FRAME_ENCODERS[kind].cacheable:
            with torch.device("meta"):
                segmenter = build_segmenter({"type": kind, "image_size": case.published_size})
            frame = torch.Size(segmenter.frame_shape).numel() * torch.float16.itemsize
            clips = 2919 * 10 * frame
            assert f"| `{kind}` | {case.published_size} | {frame / 1e6:.1f} MB | {clips / 1e9:.0f} GB |" in table
