"""Sizes of the model without weights are those of the model with them, to the byte."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.model import assemble_model, peft_config
from aurora_rl.footprint.launch import Launch
from aurora_rl.footprint.parameters import HEAD, LANGUAGE_MODEL, LORA, NF4_BYTES, TOWERS, MetaModel, build_meta_model

WAYS = {
    "full": {},
    "frozen towers": {"freeze": ["visual", "audio_tower"]},
    "half": {"dtype": "bfloat16"},
    "lora": {"use_peft": True, "lora_r": 4, "freeze": ["visual", "audio_tower"]},
    "lora in half": {"use_peft": True, "lora_r": 4, "dtype": "bfloat16"},
}


def sizes(model: nn.Module) -> tuple[int, int, int, int]:
    """Parameters and their bytes, all and those that are trained."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return (
        sum(p.numel() for p in model.parameters()),
        sum(p.nbytes for p in model.parameters()),
        sum(p.numel() for p in trained),
        sum(p.nbytes for p in trained),
    )


def estimated(meta: MetaModel) -> tuple[int, int, int, int]:
    return (
        sum(part.numel for part in meta.parts),
        sum(part.num_bytes for part in meta.parts),
        meta.trained.trained,
        meta.trained.trained_bytes,
    )


@pytest.mark.parametrize("way", WAYS)
def test_sizes_are_those_of_the_real_model(way: str, tiny_checkpoint: str) -> None:
    args = ModelArguments(model=tiny_checkpoint, **WAYS[way])
    loaded = assemble_model(args, head="masks")
    config = peft_config(args, loaded)
    real = loaded.model if config is None else get_peft_model(copy.deepcopy(loaded.model), config)
    assert estimated(build_meta_model(args, Launch())) == sizes(real)


def test_control_other_arguments_give_other_sizes(tiny_checkpoint: str) -> None:
    found = {
        estimated(build_meta_model(ModelArguments(model=tiny_checkpoint, **way), Launch())) for way in WAYS.values()
    }
    assert len(found) == len(WAYS)


def test_a_loaded_adapter_is_seen(tiny_checkpoint: str, tmp_path) -> None:
    args = ModelArguments(model=tiny_checkpoint, use_peft=True, lora_r=4)
    loaded = assemble_model(args, head="masks")
    get_peft_model(loaded.model, peft_config(args, loaded)).save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    again = ModelArguments(model=str(tmp_path))
    meta = build_meta_model(again, Launch())
    assert meta.has_loaded_adapter
    assert estimated(meta) == sizes(assemble_model(again, head="masks").model)


@pytest.mark.parametrize(
    ("kind", "image_size", "fixture"),
    [
        ("edgetam", 64, "edgetam_checkpoint"),
        ("sam", 128, "sam_checkpoint"),
        ("sam2", 64, "sam2_checkpoint"),
        ("sam3_tracker", 56, "sam3_checkpoint"),
        ("sam_hq", 128, "sam_hq_checkpoint"),
    ],
)
def test_a_new_mask_decoder_on_a_hub_checkpoint(
    kind: str, image_size: int, fixture: str, omni_checkpoint: str, request: pytest.FixtureRequest
) -> None:
    segmenter = {"type": kind, "image_size": image_size, "checkpoint": request.getfixturevalue(fixture)}
    args = ModelArguments(model=omni_checkpoint, segmenter=segmenter)
    assert estimated(build_meta_model(args, Launch())) == sizes(assemble_model(args, head="masks").model)


def test_parts_are_told_apart_by_name(tiny_checkpoint: str) -> None:
    args = ModelArguments(model=tiny_checkpoint, use_peft=True, lora_r=4, freeze=["visual", "audio_tower"])
    parts = {part.name: part for part in build_meta_model(args, Launch()).parts}
    assert set(parts) == {TOWERS, LANGUAGE_MODEL, LORA, HEAD}
    assert parts[TOWERS].trained == 0
    # r x (64 + 64) for q_proj and v_proj of two layers of width 64
    assert parts[LORA].numel == parts[LORA].trained == 2 * 2 * 4 * (64 + 64)
    assert 2 * parts[HEAD].trained == parts[HEAD].numel  # the copy that is trained, and PEFT's original


def test_deepspeed_casts_the_whole_model_to_half_precision(tiny_checkpoint: str) -> None:
    args = ModelArguments(model=tiny_checkpoint)
    numel, num_bytes, *_ = estimated(build_meta_model(args, Launch(is_deepspeed=True), half=torch.bfloat16))
    assert num_bytes == 2 * numel
    assert estimated(build_meta_model(args, Launch(), half=torch.bfloat16))[1] == 4 * numel


def test_only_the_language_model_s_matrices_are_quantized(tiny_checkpoint: str) -> None:
    args = ModelArguments(model=tiny_checkpoint, use_peft=True, freeze=["visual", "audio_tower"])
    plain = {part.name: part for part in build_meta_model(args, Launch()).parts}
    args.load_in_4bit = True
    meta = build_meta_model(args, Launch())
    quantized = {part.name: part for part in meta.parts}
    matrices = sum(
        p.numel()
        for name, p in meta.base.get_decoder().layers.named_parameters()
        if name.endswith("proj.weight") or name.endswith("base_layer.weight")
    )
    saved = plain[LANGUAGE_MODEL].num_bytes - quantized[LANGUAGE_MODEL].num_bytes
    embeddings = 2 * meta.base.lm_head.weight.numel()  # trained copies, which TRL makes bfloat16
    assert saved == pytest.approx((4 - NF4_BYTES) * matrices + 2 * embeddings, abs=100)
    assert quantized[TOWERS].num_bytes == plain[TOWERS].num_bytes


def test_bytes_of_a_4_bit_weight_are_the_papers() -> None:
    assert pytest.approx(0.127, abs=5e-4) == 8 * (NF4_BYTES - 0.5)  # bits of constants a weight, QLoRA section 3
