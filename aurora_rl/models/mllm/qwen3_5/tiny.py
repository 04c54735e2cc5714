"""What a tiny Qwen3.5 is made of; `qwen2_5_vl.tiny` builds it."""

import dataclasses

from transformers import Qwen3_5Config

from aurora_rl.models.mllm.qwen3_vl.tiny import QWEN3_VL

# Heads are as wide as the published ones: vLLM's CPU kernels know no smaller ones.
LINEAR_ATTENTION = {
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
QWEN3_5 = dataclasses.replace(
    QWEN3_VL,
    config_class=Qwen3_5Config,
    text=LINEAR_ATTENTION,
    vision={"num_position_embeddings": 64},
    rope={"mrope_interleaved": True, "partial_rotary_factor": 1.0},
)
