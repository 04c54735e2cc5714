"""What vLLM loads at start (entry point `vllm.general_plugins`), in each of its processes."""

#: Our model classes inside vLLM; asked for by `hf_overrides={"architectures": [name]}`.
MODEL_CLASSES = {
    "AuroraQwen2_5OmniForConditionalGeneration": (
        "aurora_rl.rollout.vllm_qwen2_5_omni:AuroraQwen2_5OmniForConditionalGeneration"
    ),
}


def register() -> None:
    """Make vLLM know our model classes; nothing of its own is replaced."""
    from vllm import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    for name, path in MODEL_CLASSES.items():
        if name not in known:
            ModelRegistry.register_model(name, path)
