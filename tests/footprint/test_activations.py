"""Parts of a pass beside the decoder, against the same parts run for real, and against sums by hand."""

import dataclasses

import pytest
import torch

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.footprint.activations import estimate_activations, estimate_sampling
from aurora_rl.footprint.launch import Launch
from aurora_rl.footprint.parameters import MetaModel, build_meta_model
from aurora_rl.footprint.peak import LiveMemory
from aurora_rl.footprint.workload import Workload
from aurora_rl.losses import mask_loss
from aurora_rl.models.heads import FrameBatch, MaskHead
from aurora_rl.models.heads.base import run_head
from aurora_rl.models.heads.segmenters import complete_segmenter_config
from aurora_rl.models.heads.segmenters.sam_family import USUAL_LEAST

WIDTH, LAYERS, HEADS = 64, 2, 4


def activations(meta: MetaModel, work: Workload, *, checkpointing: bool = False, is_gpu: bool = True):
    return estimate_activations(meta, work, half=None, checkpointing=checkpointing, is_gpu=is_gpu)


def test_checkpointing_keeps_the_input_of_each_layer(meta: MetaModel, work: Workload) -> None:
    kept = activations(meta, work, checkpointing=True)
    assert kept.decoder == LAYERS * 2 * 40 * WIDTH * 4  # rows x tokens x width x float32
    whole = activations(meta, work)
    assert kept.decoder + kept.layer < whole.decoder + whole.layer


def test_the_decoder_grows_with_the_tokens_alone_where_nothing_is_padded(meta: MetaModel, work: Workload) -> None:
    one = dataclasses.replace(work, rows=1)
    longer = dataclasses.replace(one, completion_tokens=50)
    assert activations(meta, longer).decoder == 2 * activations(meta, one).decoder


def test_padded_rows_add_their_masks(meta: MetaModel, work: Workload) -> None:
    """Each layer keeps its own (B, 1, L, L) bias."""
    one = dataclasses.replace(work, rows=1)
    assert activations(meta, work).decoder == 2 * activations(meta, one).decoder + LAYERS * 2 * 40 * 40 * 4


def test_frozen_towers_keep_nothing_and_trained_ones_do(meta: MetaModel, work: Workload, tiny_checkpoint: str) -> None:
    trained = build_meta_model(ModelArguments(model=tiny_checkpoint), Launch())
    assert activations(meta, work).towers == 0
    # 34 bytes of half precision, so 68 in float32, a unit of width and token; one layer of width 48 each
    assert activations(trained, work).towers == 68 * 48 * (128 + 100 // 2)


def test_frozen_weights_keep_less(meta: MetaModel, work: Workload, tiny_checkpoint: str) -> None:
    args = ModelArguments(model=tiny_checkpoint, use_peft=True, lora_dropout=0.0)
    lora = build_meta_model(args, Launch())
    assert activations(lora, work).decoder < activations(meta, work).decoder


def test_the_lm_head_of_a_gpu_by_hand(meta: MetaModel, work: Workload) -> None:
    """A tile of 20 completion tokens by 32,768, and float32 gradients of their states and of the trained matrix."""
    matrix = meta.base.lm_head.weight.numel()
    assert activations(meta, work).lm_head == 20 * 32768 * 4 + (20 * WIDTH + matrix) * 4


def test_key_value_cache_by_hand(meta: MetaModel, work: Workload) -> None:
    """Keys and values of 4 sequences of 40 tokens in both layers, all 64 wide."""
    cache, prefill = estimate_sampling(meta, work, half=None)
    assert cache == 4 * 40 * LAYERS * 2 * WIDTH * 4
    assert prefill > 4 * 30 * WIDTH * 4
    assert estimate_sampling(meta, work, half=torch.bfloat16)[0] == cache / 2


@pytest.mark.parametrize("kind", ["sam", "sam_hq"])
def test_masks_are_near_those_of_a_real_head(
    kind: str, omni_checkpoint: str, work: Workload, request: pytest.FixtureRequest
) -> None:
    """The decoder in chunks, its masks enlarged, their loss and its gradient."""
    checkpoint = request.getfixturevalue(f"{kind}_checkpoint")
    segmenter = complete_segmenter_config({"type": kind, "image_size": 128, "checkpoint": checkpoint})
    meta = build_meta_model(ModelArguments(model=omni_checkpoint, segmenter=segmenter), Launch())
    work = dataclasses.replace(work, rows=8, clips=1, size=(96, 128))  # 4 frames x 8 prompts: a frame a chunk
    head = MaskHead(WIDTH, segmenter)
    head.mask_decoder.max_masks_per_chunk = USUAL_LEAST  # more are decoded only where memory is free
    for parameter in head.parameters():
        parameter.grad = torch.zeros_like(parameter)
    states = torch.zeros(8, WIDTH, requires_grad=True)
    frames = torch.zeros(4, *head.mask_decoder.frame_shape)
    with LiveMemory() as memory:
        logits = run_head(head, states, FrameBatch(frames, torch.tensor([4]), torch.zeros(8, dtype=torch.long)))[
            "mask_logits"
        ]
        masks = head.mask_decoder.postprocess(logits, work.size).unflatten(0, (8, 4))
        mask_loss(masks, torch.zeros(8, 4, 96, 128, dtype=torch.bool)).total.backward()
    estimate = activations(meta, work).masks
    assert 0.9 * memory.peak < estimate < 1.25 * memory.peak
    fewer = activations(meta, dataclasses.replace(work, rows=4)).masks
    assert fewer < 0.75 * memory.peak  # control
