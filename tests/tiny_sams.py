"""Random checkpoints in miniature of SAM and its successors, in the layouts that are published."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    EdgeTamVideoConfig,
    EdgeTamVideoModel,
    PretrainedConfig,
    PreTrainedModel,
    Sam2VideoConfig,
    Sam2VideoMaskDecoderConfig,
    Sam2VideoModel,
    Sam3TrackerVideoConfig,
    Sam3TrackerVideoModel,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamModel,
)

from aurora_rl.models.heads.segmenters.edgetam import BACKBONE_ARGS, default_backbone_without_hub

#: SAM and SAM-HQ: width 32 on 8 x 8 patches of 16 pixels.
SAM_VISION = {
    "hidden_size": 32,
    "output_channels": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 128,
    "mlp_dim": 64,
    "window_size": 4,
    "global_attn_indexes": [0],
    "num_pos_feats": 16,
}
SAM_DECODER = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
#: The others: images of 4 x 4 cells. transformers fixes the width of the memory at 64, of which 128 is a multiple.
DECODER = {"hidden_size": 128, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
MAPS = {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "fpn_hidden_size": 128}
MEMORY = {
    "memory_attention_hidden_size": 128,
    "memory_attention_num_layers": 1,
    "memory_attention_rope_feat_sizes": [4, 4],
    "memory_encoder_hidden_size": 128,
    "memory_encoder_output_channels": 64,
    "mask_downsampler_embed_dim": 128,
    "memory_fuser_embed_dim": 128,
    "memory_fuser_intermediate_dim": 64,
}


def write_sam(folder: Path) -> str:
    """Write a SAM for images of 128 pixels."""
    config = SamConfig(
        vision_config=SAM_VISION,
        prompt_encoder_config={"hidden_size": 32, "image_size": 128},
        mask_decoder_config=SAM_DECODER,
    )
    return _write(SamModel, config, folder, std=0.3)


def write_sam_hq(folder: Path) -> str:
    """Write a SAM-HQ for images of 128 pixels; of its two layers the second has windows."""
    config = SamHQConfig(
        vision_config={**SAM_VISION, "num_hidden_layers": 2},
        prompt_encoder_config={"hidden_size": 32, "image_size": 128},
        mask_decoder_config={**SAM_DECODER, "vit_dim": 32},
    )
    return _write(SamHQModel, config, folder, std=0.3)


def write_sam2(folder: Path) -> str:
    """Write a SAM 2 with its memory, for images of 64 pixels."""
    backbone = {
        "hidden_size": 8,
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [8, 4, 4, 2],
        "window_positional_embedding_background_size": [2, 2],
        "global_attention_blocks": [3],
        "image_size": [64, 64],
    }
    config = Sam2VideoConfig(
        vision_config={"backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8], **MAPS},
        prompt_encoder_config={"hidden_size": 128, "image_size": 64},
        mask_decoder_config=Sam2VideoMaskDecoderConfig(**DECODER),  # a dict would become another part's config
        image_size=64,
        memory_attention_feed_forward_hidden_size=64,
        **copy.deepcopy(MEMORY),
    )
    return _write(Sam2VideoModel, config, folder, std=0.1)


def write_sam3(folder: Path) -> str:
    """Write a SAM 3 for images of 56 pixels, of which its detector is left out but for the image encoder."""
    backbone = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "window_size": 2,
        "global_attn_indexes": [1],
        "pretrain_image_size": 28,
    }
    config = Sam3TrackerVideoConfig(
        vision_config={"backbone_config": backbone, **MAPS},
        prompt_encoder_config={"hidden_size": 128, "image_size": 56},
        mask_decoder_config=DECODER,
        image_size=56,
        memory_attention_feed_forward_hidden_size=64,
        **copy.deepcopy(MEMORY),
    )
    _write(Sam3TrackerVideoModel, config, folder, std=0.1)
    weights = load_file(folder / "model.safetensors")
    for part in ("detector_model.", "tracker_neck."):  # transformers 5.17 saves them under `tracker_model.` too
        weights = {name.removeprefix("tracker_model.") if part in name else name: x for name, x in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tracker = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "sam3_video", "tracker_config": tracker}))
    return str(folder)


def write_edgetam(folder: Path) -> str:
    """Write an EdgeTAM with its memory, for images of 64 pixels."""
    repvit = {**BACKBONE_ARGS, "embed_dim": [8, 16, 16, 32], "depth": [1, 1, 1, 1]}
    backbone = {"model_type": "timm_wrapper", "architecture": "repvit_m1", "model_args": repvit}
    vision = {"backbone_config": backbone, "backbone_channel_list": [32, 16, 16, 8], **MAPS}
    with default_backbone_without_hub():
        config = EdgeTamVideoConfig(
            vision_config={"model_type": "edgetam_vision_model", **vision},
            prompt_encoder_config={"hidden_size": 128, "image_size": 64},
            mask_decoder_config=DECODER,
            image_size=64,
            memory_attention_mlp_hidden_size=64,
            memory_attention_rope_k_sizes=[2, 2],
            perceiver_resampler_num_latents=4,
            perceiver_resampler_num_latents_2d=4,
            perceiver_resampler_num_layers=1,
            perceiver_resampler_mlp_intermediate_size=32,
            **copy.deepcopy(MEMORY),
        )
        return _write(EdgeTamVideoModel, config, folder, std=0.1)


def _write(model_class: type[PreTrainedModel], config: PretrainedConfig, folder: Path, *, std: float) -> str:
    """Write random weights; as transformers draws them, they are so small that all frames look alike.

    Random scales of norms would make a memory drown the image.
    """
    torch.manual_seed(0)
    model: Any = model_class(config).requires_grad_(False)
    for name, parameter in model.named_parameters():
        is_norm = "norm" in name or ".bn" in name
        if not is_norm or model_class in (SamModel, SamHQModel):
            parameter.normal_(std=std)
        if name.endswith("pred_obj_score_head.proj_out.bias"):
            parameter.fill_(10.0)  # a video model has no mask where the object counts as hidden
    model.save_pretrained(folder)
    return str(folder)
