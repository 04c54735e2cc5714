"""What a tiny Qwen3-VL with experts is made of; `qwen2_5_vl.tiny` builds it."""

import dataclasses

from transformers import Qwen3VLMoeConfig

from aurora_rl.models.mllm.qwen3_vl.tiny import QWEN3_VL

EXPERTS = {
    "moe_intermediate_size": 48,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "mlp_only_layers": [],
    "norm_topk_prob": True,  # as in the hub's config, for vLLM
}
QWEN3_VL_MOE = dataclasses.replace(QWEN3_VL, config_class=Qwen3VLMoeConfig, text=EXPERTS)
