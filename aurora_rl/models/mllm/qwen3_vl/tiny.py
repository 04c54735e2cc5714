"""What a tiny Qwen3-VL is made of; `qwen2_5_vl.tiny` builds it."""

from transformers import Qwen3VLConfig, Qwen3VLProcessor, Qwen3VLVideoProcessor

from aurora_rl.models.mllm.qwen2_5_vl.tiny import TinyParts

QWEN3_VL = TinyParts(
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    vision={"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
    rope={"mrope_interleaved": True},
)
