"""What a tiny Qwen3.5 with experts is made of; `qwen2_5_vl.tiny` builds it."""

import dataclasses

from transformers import Qwen3_5MoeConfig

from aurora_rl.models.mllm.qwen3_5.tiny import LINEAR_ATTENTION, QWEN3_5
from aurora_rl.models.mllm.qwen3_vl_moe.tiny import EXPERTS

QWEN3_5_MOE = dataclasses.replace(
    QWEN3_5,
    config_class=Qwen3_5MoeConfig,
    text=LINEAR_ATTENTION | EXPERTS | {"shared_expert_intermediate_size": 64},
)
