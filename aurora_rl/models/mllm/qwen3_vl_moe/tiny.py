"""What a tiny Qwen3-VL with experts is made of; `qwen2_5_vl.tiny` builds it."""

import dataclasses

from transformers import Qwen3VLMoeConfig

from aurora_rl.models.mllm.qwen3_vl.tiny import QWEN3_VL

# vLLM's CPU build pads experts whose width is no multiple of 64, and cannot load them again.
EXPERTS = {
    "moe_intermediate_size": 64,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
QWEN3_VL_MOE = dataclasses.replace(QWEN3_VL, config_class=Qwen3VLMoeConfig, text=EXPERTS)
