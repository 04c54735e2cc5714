"""Plugin that vLLM loads at the start of each of its processes (entry point `vllm.general_plugins`)."""

#: Our model classes inside vLLM, selected by `hf_overrides={"architectures": [name]}`.
MODEL_CLASSES = {
    "AuroraQwen2_5OmniForConditionalGeneration": (
        "aurora_rl.rollout.vllm_qwen2_5_omni:AuroraQwen2_5OmniForConditionalGeneration"
    ),
}

#: Our weight transfers of `vllm serve`: module and class, by the backend's name in `--weight-transfer-config`.
WEIGHT_TRANSFER_ENGINES = {
    "gloo": ("aurora_rl.rollout.cpu.gloo_transfer", "GlooWeightTransferEngine"),
}


def register() -> None:
    """Register our model classes and weight transfers in vLLM, and replace one method of its CPU build."""
    from vllm import ModelRegistry
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.platforms import current_platform

    known = ModelRegistry.get_supported_archs()
    for name, path in MODEL_CLASSES.items():
        if name not in known:
            ModelRegistry.register_model(name, path)
    for name, (module, class_name) in WEIGHT_TRANSFER_ENGINES.items():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, module, class_name)
    if current_platform.is_cpu():
        from aurora_rl.rollout.cpu.seeds import let_seeded_prompts_be_read_in_parts

        let_seeded_prompts_be_read_in_parts()
